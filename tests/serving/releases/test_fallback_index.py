"""While no release is live the newest usable index answers: at the door, in impressions, /readyz and metrics."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from index.build import build_index
from index.settings import IndexSettings
from queryloop.up.readiness import FALLS_BACK, describe_release
from serving.metrics import ServingMetrics
from serving.releases import registry
from serving.releases.fallback_index import FallbackIndex, load_fallback
from serving.releases.slot import Slot
from streams.events.schema import Impression
from streams.runtime import artifacts
from tests.support.prometheus import read_value
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import AppUnderTest, put

CALL = {"task": "suggest", "query": "red shoes", "session_id": "s1"}
LABELS = {"release": "none", "task": "suggest", "form": "fallback"}
FOLLOWED = [("red shoes", "red boots", 5), ("red shoes", "red laces", 2), ("hats", "caps", 9)]


def publish_index(data: Path, followed: list[tuple[str, str, int]] = FOLLOWED) -> Path:
    columns = zip(*followed, strict=True) if followed else ((), (), ())
    kinds = (pa.string(), pa.string(), pa.int64())
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, kinds, strict=True)]
    table = pa.table(dict(zip(("query", "next_query", "count"), arrays, strict=True)))
    settings = IndexSettings(dim=8, buckets=512, epochs=1)

    def fill(folder: Path) -> None:
        build_index(table, folder, settings)

    return artifacts.publish(data / "artifacts", "index", fill, {}).path


def serve(data: Path) -> AppUnderTest:
    return AppUnderTest(data, ScriptedEngine(), empty=True)


def test_an_index_without_a_policy_answers_and_its_impressions_name_no_release(tmp_path: Path) -> None:
    publish_index(tmp_path)
    served = serve(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/recommend", json=CALL)
        assert answer.status_code == 200
        body = answer.json()
        assert body["items"] == ["red boots", "red laces", "caps"]
        assert (body["release"], body["form"], body["logprob"], body["decoding"]) == (None, "fallback", None, None)
        (impression,) = served.sink.events
        assert isinstance(impression, Impression)
        assert (impression.release, impression.logprob, impression.decoding) == (None, None, None)
        assert json.loads(impression.extra)["context"]["form"] == "fallback"
        assert read_value((await client.get("/metrics")).text, "queryloop_lists_total", **LABELS) == 1

    served.run(scenario)


def test_ready_with_an_index_while_no_release_is_promoted_and_status_says_so(tmp_path: Path) -> None:
    publish_index(tmp_path)

    async def scenario(client: httpx.AsyncClient) -> None:
        ready = await client.get("/readyz")
        said = ready.json()
        assert (ready.status_code, said["ready"], said["release"], said["form"], said["error"]) == (
            200,
            True,
            None,
            "fallback",
            None,
        )
        assert describe_release(said).text == FALLS_BACK

    serve(tmp_path).run(scenario)


def test_a_promoted_release_that_cannot_be_loaded_is_503_for_balancers_while_calls_are_answered(tmp_path: Path) -> None:
    publish_index(tmp_path)
    served = serve(tmp_path)
    served.load_error = ValueError("no such tensor")
    registry.promote(tmp_path, "r0000")
    served.slot.check()

    async def scenario(client: httpx.AsyncClient) -> None:
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["form"]) == (503, "fallback")
        assert "no such tensor" in ready.json()["error"]
        assert (await client.post("/v1/recommend", json=CALL)).json()["form"] == "fallback"

    served.run(scenario)


def test_a_release_takes_over_and_the_index_is_freed(tmp_path: Path) -> None:
    publish_index(tmp_path)
    served = serve(tmp_path)
    registry.promote(tmp_path, "r0000")
    assert served.slot.check()
    assert served.slot.fallback.index is None

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/recommend", json=CALL)).json()["release"] == "r0000"
        said = (await client.get("/readyz")).json()
        assert (said["release"], said["form"]) == ("r0000", None)

    served.run(scenario)


def test_an_index_that_appears_later_answers_from_then_on(tmp_path: Path) -> None:
    served = serve(tmp_path)
    assert not served.slot.falls_back
    publish_index(tmp_path)
    served.slot.check()
    assert served.slot.falls_back


def test_an_empty_or_damaged_index_answers_nothing_and_the_damage_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_index(tmp_path, [])
    fallback = FallbackIndex(tmp_path, load_fallback)
    fallback.check()
    assert fallback.index is None
    damaged = publish_index(tmp_path)
    (damaged / "dictionary.parquet").chmod(0o644)
    put(damaged / "dictionary.parquet", b"x")
    with caplog.at_level(logging.ERROR):
        fallback.check()
        fallback.check()
    assert fallback.index is None
    assert [str(damaged) in record.getMessage() for record in caplog.records] == [True]


def test_a_damaged_index_never_keeps_a_release_from_going_live(tmp_path: Path) -> None:
    policy = artifacts.publish(tmp_path / "artifacts", "policy", lambda folder: put(folder / "weights", b"w"), {})
    registry.publish(tmp_path, policy=policy.path)
    artifacts.publish(tmp_path / "artifacts", "index", lambda folder: put(folder / "x", b"w"), {})
    registry.promote(tmp_path, "r0000")
    served = serve(tmp_path / "other")
    slot = Slot(tmp_path, served.load, ServingMetrics(), fallback=FallbackIndex(tmp_path, load_fallback))
    assert slot.check()
