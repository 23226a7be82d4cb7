"""The HTTP app, in process with a scripted engine, and once as a real process over TCP with a real policy and broker."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.releases import registry
from streams.events.schema import Impression, encode
from tests.support.prometheus import read_value
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import NOW, AppUnderTest

KEY = "a-long-enough-key"


@pytest.fixture
def served(tmp_path: Path) -> AppUnderTest:
    return AppUnderTest(tmp_path, ScriptedEngine())


CALL = {"task": "suggest", "query": "red shoes", "session_id": "s1"}


def test_recommend_answers_a_list_and_emits_its_impression(tmp_path: Path) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine(), temperature=0.8, top_p=0.7, redraws=0)

    async def scenario(client: httpx.AsyncClient) -> None:
        more = {"user_id": "u", "session": ["hats"], "response": "Worn.", "context": {"page": 3}, "ts": "2020-09-13T12:26:40Z"}
        answer = await client.post("/v1/recommend", json={**CALL, **more})
        assert answer.status_code == 200
        body = answer.json()
        (impression,) = served.sink.events
        assert isinstance(impression, Impression)
        assert body == {
            "impression_id": impression.impression_id,
            "session_id": "s1",
            "release": "r0000",
            "task": "suggest",
            "items": ["item 0", "item 1", "item 2"],
            "auxiliary": {},
            "predicted": None,
            "logprob": -1.5,
            "decoding": {"temperature": 0.8, "top_p": 0.7},
            "written": [True, True, True],
            "forced": 0,
            "form": "well_formed",
        }
        assert (impression.session_id, impression.user_id, impression.query) == ("s1", "u", "red shoes")
        assert impression.ts_us == 1_600_000_000_000_000
        assert (impression.release, impression.logprob, impression.decoding) == ("r0000", -1.5, body["decoding"])
        assert list(impression.items) == body["items"]
        extra = json.loads(impression.extra)
        grammar = {"written": [True, True, True], "forced": 0}
        assert extra == {
            "context": {"page": 3, "session": ["hats"], "related": [], "form": "well_formed", **grammar},
            "response": "Worn.",
        }
        json.loads(encode(impression))

    served.run(scenario)


def test_event_time_is_now_by_default_and_ids_are_the_products_if_given(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/recommend", json={**CALL, "impression_id": "mine"})
        assert (answer.json()["impression_id"], answer.json()["session_id"]) == ("mine", CALL["session_id"])
        assert served.sink.events[0].ts == NOW

    served.run(scenario)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "sing"}, "task: not one of hint, refine, suggest"),
        ({"query": ""}, "query: "),
        ({"query": " \n"}, "query: "),
        ({"query": "\x1c"}, "query: only white space or invisible characters"),
        ({"query": "\x07\x7f"}, "query: only white space or invisible characters"),
        ({"query": "\u200b\ufeff\u3164"}, "query: only white space or invisible characters"),
        ({"query": "\u2028"}, "query: only white space or invisible characters"),
        ({"query": "x" * 513}, "query: 513 characters, at most 512"),
        ({"query": "\ud800"}, "query: "),
        ({"query": 3}, "query: "),
        ({"session_id": ""}, "session_id: "),
        ({"session": ["a"] * 65}, "session: "),
        ({"ts": NOW + 100_000}, "ts: more than 86400 s ahead"),
        ({"ts": "2020-09-13T12:26:40"}, "ts: RFC 3339 needs an offset"),
        ({"ts": -1}, "ts: outside 1970 to 9999"),
        ({"ts": float("nan")}, "ts: outside 1970 to 9999"),
        ({"ts": 1e300}, "ts: outside 1970 to 9999"),
        ({"context": {"a": "x" * 20_000}}, "context: "),
        ({"quary": "x"}, "quary: "),
    ],
)
def test_a_call_that_cannot_be_answered_names_the_field(served: AppUnderTest, change: dict[str, Any], said: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/recommend", content=json.dumps({**CALL, **change}), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["error"][: len(said)]) == (422, said)
        assert served.engine.batches == []
        assert served.sink.events == []

    served.run(scenario)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_binary_junk_is_refused(served: AppUnderTest, body: bytes) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/recommend", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422)

    served.run(scenario)


def test_many_requests_share_batches(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answers = await asyncio.gather(*(client.post("/v1/recommend", json=CALL) for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["impression_id"] for answer in answers}) == 40

    served.run(scenario)
    assert len(served.sink.events) == 40
    assert len(served.engine.batches) < 40


def test_without_a_release_the_app_is_up_but_not_ready(tmp_path: Path) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine(), empty=True)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        answer = await client.post("/v1/recommend", json=CALL)
        assert answer.status_code == 503
        assert "no release is promoted yet" in answer.json()["error"]
        assert int(answer.headers["retry-after"]) >= 1

    served.run(scenario)


def test_a_swap_shows_in_answers_and_a_broken_release_in_readyz(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        registry.promote(served.data, "r0001")
        served.load_error = ValueError("bad weights")
        assert not served.slot.check()
        ready = (await client.get("/readyz")).json()
        assert (ready["ready"], ready["release"]) == (True, "r0000")
        assert "bad weights" in ready["error"]
        assert (await client.post("/v1/recommend", json=CALL)).json()["release"] == "r0000"
        served.load_error = None
        served.slot._failed = None
        assert served.slot.check()
        assert (await client.post("/v1/recommend", json=CALL)).json()["release"] == "r0001"
        listed = (await client.get("/v1/releases")).json()
        assert (listed["live"], listed["rollout"]["previous"]) == ("r0001", "r0000")
        assert [release["id"] for release in listed["releases"]] == ["r0000", "r0001"]
        registry.mark_pruned(registry.read_release(served.data, "r0000"), lambda: 0.0)
        listed = (await client.get("/v1/releases")).json()
        assert [release["pruned"] for release in listed["releases"]] == ["1970-01-01T00:00:00+00:00", None]

    served.run(scenario)


def test_a_lost_impression_is_counted_and_the_list_still_answered(served: AppUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    served.sink.full = True

    async def scenario(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            assert (await client.post("/v1/recommend", json=CALL)).status_code == 200
        assert read_value((await client.get("/metrics")).text, "queryloop_impressions_lost_total", reason="queue_full") == 3

    with caplog.at_level(logging.WARNING, "serving"):
        served.run(scenario)
    assert len([record for record in caplog.records if "impression_lost" in record.message]) == 1


def test_a_late_list_is_504(tmp_path: Path) -> None:
    gate = threading.Event()
    served = AppUnderTest(tmp_path, ScriptedEngine(before=lambda: gate.wait(20)), deadline_s=0.05)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/recommend", json=CALL)).status_code == 504
        assert served.sink.events == []
        gate.set()

    served.run(scenario)


def test_a_full_queue_is_503(tmp_path: Path) -> None:
    gate, started = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        gate.wait(20)

    served = AppUnderTest(tmp_path, ScriptedEngine(before=hold), queue_limit=1, batch_wait_ms=0)

    async def scenario(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post("/v1/recommend", json=CALL))
        await asyncio.to_thread(started.wait, 20)
        others = [asyncio.create_task(client.post("/v1/recommend", json=CALL)) for _ in range(4)]
        done, _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
        refused = done.pop().result()
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        gate.set()
        statuses = [answer.status_code for answer in await asyncio.gather(first, *others)]
        assert statuses.count(200) == 2

    served.run(scenario)


def test_events_are_accepted_or_refused_by_index(served: AppUnderTest) -> None:
    good = {"type": "query", "event_id": "e", "ts": NOW, "session_id": "s", "query": "shoes"}

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/events", json={"events": [good, {"type": "x"}, good]})
        assert answer.status_code == 202
        assert answer.json()["accepted"] == 2
        assert [(one["index"], one["reason"]) for one in answer.json()["rejected"]] == [(1, "invalid")]
        lines = b"\n".join([json.dumps(good).encode(), b"\xff"])
        answer = await client.post("/v1/events", content=lines, headers={"content-type": "application/x-ndjson"})
        assert [(one["index"], one["reason"]) for one in answer.json()["rejected"]] == [(1, "malformed")]
        text = (await client.get("/metrics")).text
        assert read_value(text, "queryloop_events_accepted_total") == 3
        assert read_value(text, "queryloop_events_rejected_total", reason="malformed") == 1
        served.sink.stored = False
        answer = await client.post("/v1/events", json={"events": [good]})
        assert (answer.status_code, answer.json()["accepted"]) == (503, 1)
        assert "retry-after" in answer.headers and "send the batch again" in answer.json()["error"]
        served.sink.full = True
        answer = await client.post("/v1/events", json={"events": [good]})
        assert (answer.status_code, answer.json()["accepted"]) == (503, 0)
        assert "retry-after" in answer.headers
        assert (await client.post("/v1/events", json={"events": [good] * 1001})).status_code == 413

    served.run(scenario)


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/readyz", "/metrics", "/v1/releases", "/v1/queryloop.js", "/v1/events/schema.json", "/v1/openapi.json"],
)
def test_head_answers_as_get_does(served: AppUnderTest, path: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        get, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])

    served.run(scenario)


def test_what_has_no_route_or_method_is_answered_as_every_error(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/nowhere")).json() == {"error": "Not Found"}
        answer = await client.delete("/v1/recommend")
        assert (answer.status_code, answer.headers["allow"], answer.json()) == (405, "POST", {"error": "Method Not Allowed"})

    served.run(scenario)


def test_a_body_beyond_the_limit_is_refused_with_a_content_length_or_not(served: AppUnderTest) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(40):
            sent += 65_536
            yield b"x" * 65_536

    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/v1/recommend", "/v1/events"):
            assert (await client.post(path, content=b"x" * 300_000)).status_code == 413
            assert (await client.post(path, content=chunks())).status_code == 413
        assert (await client.post("/v1/recommend", json={**CALL, "query": "x" * 2_000_000})).status_code == 413
        within = json.dumps({**CALL, "response": "x" * 60_000}).encode()

        async def slices() -> AsyncIterator[bytes]:
            for start in range(0, len(within), 1000):
                yield within[start : start + 1000]

        assert (
            await client.post("/v1/recommend", content=slices(), headers={"content-type": "application/json"})
        ).status_code == 200

    served.run(scenario)


def test_a_key_guards_everything_but_health(tmp_path: Path) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine(), key=KEY)

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        for given in (None, "", "Bearer", f"Bearer {KEY}x", f"bearer{KEY}", "Bearer \xe4", KEY):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            answer = await client.post("/v1/recommend", json=CALL, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert (await client.get("/metrics", headers=headers)).status_code == 401
        answer = await client.post("/v1/recommend", json=CALL, headers={"authorization": f"Bearer {KEY}"})
        assert answer.status_code == 200

    served.run(scenario)


def test_an_error_in_a_batch_is_a_500_without_details(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("secret detail")

    served = AppUnderTest(tmp_path, ScriptedEngine(before=fail))

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/recommend", json=CALL)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        served.engine.before = None
        assert (await client.post("/v1/recommend", json=CALL)).status_code == 200

    served.run(scenario)


def test_users_texts_are_not_logged(served: AppUnderTest, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.post("/v1/recommend", json={**CALL, "query": "very private"})
        await client.post("/v1/recommend", json={**CALL, "query": ["very private"]})
        await client.post("/v1/events", json={"events": [{"query": "very private"}]})

    with caplog.at_level(logging.INFO):
        served.run(scenario)
    assert "very private" not in caplog.text


def test_metrics_count_requests_by_route(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        await client.get("/healthz")
        await client.get("/a/b/c")
        await client.get("/<script>")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert read_value(answer.text, "queryloop_requests_total", path="/healthz", status="200") == 1
        assert read_value(answer.text, "queryloop_requests_total", path="other", status="404") == 2
        assert read_value(answer.text, "queryloop_request_seconds_count", path="other") == 2
        assert read_value(answer.text, "queryloop_release_info", release="r0000") == 1
        assert read_value(answer.text, "queryloop_emitter_events_total", state="emitted") == 0

    served.run(scenario)
