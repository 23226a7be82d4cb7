"""Too many requests and damaged releases, on a real serving process: it answers with the reason and keeps the live release."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serving.releases import registry
from serving.settings import ServingRoot, ServingSettings
from streams.brokers.topics import KafkaSettings
from streams.emitter.emitter import EmitterSettings
from streams.runtime.processes import Child, free_port
from streams.runtime.settings import DataSettings
from tests.support.logs import query
from tests.support.loops import Answer, call, post, publish_policy, start_serving, wait_serving
from tests.support.prometheus import read_value


@dataclass(frozen=True)
class Server:
    """A serving process without a broker and with small queues, on a data folder of its own."""

    child: Child
    url: str
    data: Path

    def recommend(self) -> Answer:
        return post(f"{self.url}/v1/recommend", {"task": "refine", "query": "lisbon", "session_id": "s"})

    def ready(self) -> Any:
        return call(f"{self.url}/readyz").json

    def metric(self, name: str, **labels: str) -> float:
        """The value of a sample of /metrics, 0 where there is none."""
        return read_value(call(f"{self.url}/metrics").body.decode(), name, **labels) or 0.0

    def wait(self, ready: Any, what: str) -> None:
        self.child.wait_until(lambda: ready(self.ready()), 60, what, poll_s=0.05)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    data = place / "data"
    data.mkdir()
    registry.promote(data, publish_policy(data).id)
    root = ServingRoot(
        data=DataSettings(dir=data),
        kafka=KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}"),
        emitter=EmitterSettings(max_buffered=10, delivery_timeout_s=5),
        serving=ServingSettings(
            port=free_port(), device="cpu", max_batch=1, queue_limit=2, deadline_s=30, poll_s=0.1, retry_s=0.2, outbox=False
        ),
    )
    url = f"http://127.0.0.1:{root.serving.port}"
    with start_serving(root, place / "serving.log") as child:
        wait_serving(child, url)
        yield Server(child, url, data)


def test_a_full_buffer_is_answered_503_with_retry_after_and_lists_are_still_answered(server: Server) -> None:
    events = [query(f"e{number}", time.time()) for number in range(20)]
    answer = call(f"{server.url}/v1/events", b"\n".join(events), "application/x-ndjson")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "emitter.max_buffered is 10" in answer.json["error"]
    assert 0 < answer.json["accepted"] <= 10
    assert server.recommend().status == 200
    assert server.metric("queryloop_impressions_lost_total", reason="queue_full") >= 1


def test_a_full_queue_is_answered_503_with_retry_after_and_the_waiting_ones_are_answered(server: Server) -> None:
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda _: server.recommend(), range(12)))
    assert {answer.status for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status == 503]
    assert all(answer.json["error"] == "2 requests wait already" for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert server.recommend().status == 200


def spoil_byte(release: registry.Release) -> None:
    weights = unlock(release.policy / "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def cut_weights(release: registry.Release) -> None:
    weights = unlock(release.policy / "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])


def remove_tokenizer(release: registry.Release) -> None:
    (release.policy / "tokenizer.json").unlink()


def spoil_manifest(release: registry.Release) -> None:
    (release.path / "manifest.json").write_text('{"id": "r00')


def remove_manifest(release: registry.Release) -> None:
    (release.path / "manifest.json").unlink()


def unlock(path: Path) -> Path:
    path.chmod(0o644)
    return path


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_byte, "model.safetensors"),
        (cut_weights, "model.safetensors"),
        (remove_tokenizer, "tokenizer.json"),
        (spoil_manifest, "manifest.json"),
        (remove_manifest, "manifest.json"),
    ],
)
def test_a_corrupt_release_leaves_the_old_one_live_and_says_which_file(server: Server, spoil: Any, says: str) -> None:
    release = publish_policy(server.data)
    spoil(release)
    name_champion(server.data, release.id)
    server.wait(lambda ready: ready["error"], "saying why the release cannot go live")
    ready = server.ready()
    assert (ready["ready"], ready["release"]) == (True, "r0000")
    assert release.id in ready["error"] and says in ready["error"]
    assert server.metric("queryloop_release_load_failed") == 1
    assert server.recommend().json["release"] == "r0000"
    name_champion(server.data, "r0000")
    server.wait(lambda ready: ready["error"] is None, "over it")
    assert server.metric("queryloop_release_load_failed") == 0


def test_a_damaged_rollout_changes_nothing_and_is_named(server: Server) -> None:
    rollout = server.data / "releases" / "rollout.json"
    before = rollout.read_bytes()
    rollout.write_text("{")
    server.wait(lambda ready: ready["error"], "saying that the rollout is damaged")
    assert "rollout.json" in server.ready()["error"]
    assert server.recommend().json["release"] == "r0000"
    rollout.write_bytes(before)
    server.wait(lambda ready: ready["error"] is None, "over it")


def test_a_good_release_still_goes_live_after_all_that(server: Server) -> None:
    release = publish_policy(server.data)
    registry.promote(server.data, release.id)
    server.wait(lambda ready: ready["release"] == release.id, "answering with the good release")
    assert server.ready()["error"] is None
    assert server.recommend().json["release"] == release.id


def name_champion(data: Path, name: str) -> None:
    """Point the rollout at a release by hand: `promote` would not take one without a readable manifest."""
    beside = data / "rollout.part"
    beside.write_text(json.dumps({"champion": name}))
    beside.replace(data / "releases" / "rollout.json")
