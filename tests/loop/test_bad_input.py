"""Bad input, each kind tried on real processes: a clear message or a quarantine row with a reason, and nothing else disturbed.

What goes to the topic and through the door is poured once into one worker and one server on each broker, every bad event between
good ones; the tests then look at what became of it.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from queryloop.settings import Settings
from queryloop.up.worker_process import WorkerProcess
from serving.releases import registry
from serving.settings import ServingRoot, ServingSettings
from streams.brokers.broker import Broker, EmbeddedBroker
from streams.brokers.topics import KafkaSettings, create_topics
from streams.emitter.emitter import Emitter, EmitterSettings, QueueFull
from streams.events.rules import CountingRules
from streams.events.schema import EventError, Query, Reason, make_event_id
from streams.runtime.environment import environ_of
from streams.runtime.processes import Child, free_port
from streams.runtime.settings import DataSettings
from streams.store.held_shards import shard_path
from streams.store.shard import Shard
from streams.worker.settings import StreamsSettings, WorkerSettings
from tests.support.logs import click, impression, query
from tests.support.loops import Answer, call, post, publish_policy, start_serving, wait_serving, wait_worker
from tests.support.prometheus import read_value

DAY = 86_400.0
MEGABYTES_2 = 2 * 1024 * 1024
JUNK = random.Random(7).randbytes(4096).replace(b"\n", b"\xff") + b"\xff"
HOSTILE = "<script>alert(1)</script>'; DROP TABLE events; -- \x1b[31m"


@dataclass(frozen=True)
class Bad:
    """A bad event: what is sent, and the reason and the words by which quarantine must explain it."""

    line: bytes | None
    reason: Reason
    says: str


def bad_events(now: float) -> dict[str, Bad]:
    """Every bad event that reaches the topic, by name."""
    stray = click("bad-orphan", now - 2 * DAY, "never-shown", 0, session_id="bad")
    no_session = json.dumps({"type": "query", "event_id": "bad-missing", "ts": now, "query": "q"}).encode()
    return {
        "malformed line": Bad(b'{"type":"query","event_id":"bad-malformed",', Reason.MALFORMED, "not JSON"),
        "missing field": Bad(no_session, Reason.INVALID, "session_id"),
        "month in the future": Bad(query("bad-future", now + 30 * DAY), Reason.FUTURE_EVENT, "ts: "),
        "click without impression": Bad(stray, Reason.ORPHAN_CLICK, "no such impression"),
        "query over the limit": Bad(query("bad-long", now, "x" * 513), Reason.TOO_LARGE, "query: 513 characters, at most 512"),
        "2 MB query": Bad(query("bad-2mb", now, "x" * MEGABYTES_2), Reason.TOO_LARGE, "at most 65536 are allowed"),
        "binary junk": Bad(JUNK, Reason.MALFORMED, "not JSON"),
        "record without a value": Bad(None, Reason.MALFORMED, "record without a value"),
    }


RAW = ("2 MB query", "binary junk", "record without a value")
"""What only a producer of somebody else's can send: each in a record of its own."""
NAMES = tuple(bad_events(0.0))


def good_pair(name: str, now: float) -> list[bytes]:
    """An impression and the click on its first item, to stand before and behind a bad event."""
    shown = impression(f"good-{name}-shown", now - 60, f"good-{name}", [f"first {name}", HOSTILE], session_id=name)
    return [shown, click(f"good-{name}-click", now - 30, f"good-{name}", 0, session_id=name)]


@dataclass(frozen=True)
class Loop:
    """One worker and one server on a broker, over one data folder; one partition, so that nothing can hide in another."""

    worker: WorkerProcess
    settings: StreamsSettings
    url: str

    @property
    def kafka(self) -> KafkaSettings:
        return self.settings.kafka

    @property
    def bootstrap(self) -> str:
        assert self.kafka.bootstrap
        return self.kafka.bootstrap


@dataclass(frozen=True)
class Outcome:
    """What was poured, what the door answered, and what the worker made of it."""

    now: float
    answers: dict[str, Answer]
    status: dict[str, Any]
    published: list[dict[str, Any]]
    quarantine: list[dict[str, Any]]
    windows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]


@pytest.fixture(scope="module")
def policy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose champion is a tiny policy with random weights."""
    data = tmp_path_factory.mktemp("policy")
    registry.promote(data, publish_policy(data).id)
    return data


@pytest.fixture(scope="module")
def loop(broker: Broker, policy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    place = tmp_path_factory.mktemp("loop")
    data = DataSettings(dir=Path(shutil.copytree(policy_data, place / "data")))
    name = place.name + make_event_id()[:8]
    kafka = KafkaSettings(
        bootstrap=broker.bootstrap, topic=name, quarantine_topic=f"{name}.q", group=name, partitions=1, session_timeout_s=6.0
    )
    settings = StreamsSettings(data=data, kafka=kafka, worker=WorkerSettings(name=name, port=free_port(), static=False))
    root = ServingRoot(data=data, kafka=kafka, serving=ServingSettings(port=free_port(), device="cpu", deadline_s=30.0))
    url = f"http://127.0.0.1:{root.serving.port}"
    with (
        WorkerProcess(settings, place / "worker.log") as worker,
        start_serving(root, place / "serving.log") as server,
    ):
        wait_worker(worker, settings, lambda status: True, "holding its shard")
        wait_serving(server, url)
        yield Loop(worker, settings, url)


@pytest.fixture(scope="module")
def outcome(loop: Loop) -> Outcome:
    now = time.time()
    answers = knock(loop.url, now)
    pour(loop, now)
    events = 3 * len(NAMES) + 3 + 1  # a pair around each bad event; what the door took of a batch; the list it answered

    def applied(status: dict[str, Any]) -> bool:
        return bool(status["shards"][0]["events"] >= events and not status["shards"][0]["pending"])

    status = wait_worker(loop.worker, loop.settings, applied, "having applied everything")["shards"][0]
    published = read_published(loop, sum(status["quarantined"].values()))
    loop.worker.stop()
    shard = Shard.open(shard_path(loop.settings.data.dir, 0), CountingRules(), read_only=True)
    tomorrow = datetime.fromtimestamp(now + DAY, UTC).date()
    tables = (shard.quarantine(), shard.windows(tomorrow), shard.cooccurrence(tomorrow))
    shard.close()
    return Outcome(now, answers, status, published, *(table.to_pylist() for table in tables))


def knock(url: str, now: float) -> dict[str, Answer]:
    """Call the door with all that is bad, and with something good before and after."""
    batch = [
        query("good-http-1", now - 20, "lisbon", session_id="http"),
        b'{"type":"query",',
        json.dumps({"type": "query", "event_id": "bad-http-missing", "ts": now, "query": "q"}).encode(),
        query("bad-http-future", now + 30 * DAY),
        click("bad-http-orphan", now - 2 * DAY, "never-shown", 1, session_id="http"),
        query("good-http-2", now - 10, "lisbon museums", session_id="http"),
    ]
    recommend, events, ndjson = f"{url}/v1/recommend", f"{url}/v1/events", "application/x-ndjson"
    good = {"task": "suggest", "query": "lisbon", "session_id": "http"}
    return {
        "batch": call(events, b"\n".join(batch), ndjson),
        "2 MB query": post(recommend, good | {"query": "x" * MEGABYTES_2}),
        "2 MB event": call(events, query("bad-http-2mb", now, "x" * MEGABYTES_2), ndjson),
        "query over the limit": post(recommend, good | {"query": "x" * 513}),
        "malformed body": call(recommend, b'{"task": "sugg'),
        "missing field": post(recommend, {"task": "suggest", "query": "lisbon"}),
        "unknown field": post(recommend, good | {"sesion": ["a"]}),
        "unknown task": post(recommend, good | {"task": "sugest"}),
        "month in the future": post(recommend, good | {"ts": now + 30 * DAY}),
        "junk body": call(events, JUNK),
        "junk lines": call(events, JUNK, ndjson),
        "good": post(recommend, good),
    }


def pour(loop: Loop, now: float) -> None:
    """Send every bad event between two good ones of its own session: inside a record where a line can stand there."""
    producer = KafkaProducer(bootstrap_servers=loop.bootstrap, max_request_size=2 * MEGABYTES_2)
    with Emitter(loop.bootstrap, topic=loop.kafka.topic) as emitter:
        for name, bad in bad_events(now).items():
            shown, clicked = good_pair(name, now)
            emitter.emit_line(shown, name)
            if name in RAW:
                assert emitter.flush(30)
                producer.send(loop.kafka.topic, bad.line, key=b"somebody else's", partition=0).get(30)
            else:
                assert bad.line is not None
                emitter.emit_line(bad.line, name)
            emitter.emit_line(clicked, name)
    producer.close()


def read_published(loop: Loop, rows: int) -> list[dict[str, Any]]:
    """The quarantine topic, once it has as many records."""
    consumer = KafkaConsumer(bootstrap_servers=loop.bootstrap, fetch_max_bytes=2 * MEGABYTES_2)
    place = TopicPartition(loop.kafka.quarantine_topic, 0)
    consumer.assign([place])
    consumer.seek_to_beginning(place)
    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 30
    while len(found) < rows and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=200).values():
            found += [json.loads(record.value) for record in records]
    consumer.close()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_event_on_the_topic_has_a_quarantine_row_that_says_why(outcome: Outcome, name: str) -> None:
    bad = bad_events(outcome.now)[name]
    [row] = [row for row in outcome.quarantine if row["raw"] == (bad.line or b"")]
    assert row["reason"] == bad.reason
    assert bad.says in row["detail"]
    assert row["detail"].isprintable()


@pytest.mark.parametrize("name", NAMES)
def test_the_good_events_around_a_bad_one_are_counted(outcome: Outcome, name: str) -> None:
    [window] = [row for row in outcome.windows if row["item_norm"] == f"first {name}".casefold()]
    assert (window["position"], window["impressions"], window["clicks"]) == (0, 1, 1)


def test_every_event_has_one_outcome_and_status_tells_all_of_them(outcome: Outcome) -> None:
    reasons = Counter(row["reason"] for row in outcome.quarantine)
    bad = Counter(str(one.reason) for one in bad_events(outcome.now).values()) + Counter(orphan_click=1)
    assert reasons == outcome.status["quarantined"] == bad
    assert outcome.status["counted"] == 2 * len(NAMES) + 2 + 1
    assert outcome.status["events"] == outcome.status["counted"] + bad.total()
    assert (outcome.status["duplicates"], outcome.status["pending"]) == (0, 0)


def test_the_quarantine_topic_has_each_bad_event_with_its_reason(outcome: Outcome) -> None:
    def places(rows: list[dict[str, Any]], offset: str) -> list[tuple[str, int, int]]:
        return sorted((row["reason"], row[offset], row["line"]) for row in rows)

    assert places(outcome.published, "offset") == places(outcome.quarantine, "log_offset")
    assert [row["truncated"] for row in outcome.published if row["event_id"] == "bad-2mb"] == [True]
    assert all("raw" in row or "raw_base64" in row for row in outcome.published)


def test_the_door_refuses_bad_events_of_a_batch_by_index_and_takes_the_others(outcome: Outcome) -> None:
    answer = outcome.answers["batch"]
    assert answer.status == 202
    refused = {one["index"]: (one["reason"], one["detail"]) for one in answer.json["rejected"]}
    assert answer.json["accepted"] == 3
    assert {index: reason for index, (reason, _) in refused.items()} == {1: "malformed", 2: "invalid", 3: "future_event"}
    assert "session_id" in refused[2][1]
    assert [(row["query"], row["next_query"], row["count"]) for row in outcome.pairs] == [("lisbon", "lisbon museums", 1)]


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("2 MB query", 413, "the body is larger than 262144 bytes"),
        ("2 MB event", 413, "the body is larger than 262144 bytes"),
        ("query over the limit", 422, "query: 513 characters, at most 512 are allowed"),
        ("malformed body", 422, "JSON"),
        ("missing field", 422, "session_id"),
        ("unknown field", 422, "sesion"),
        ("unknown task", 422, "task: not one of hint, refine, suggest"),
        ("month in the future", 422, "ts: more than 86400 s ahead of the clock"),
        ("junk body", 422, '{"events": [...]}'),
    ],
)
def test_the_door_says_what_is_wrong_with_a_body(outcome: Outcome, name: str, status: int, says: str) -> None:
    answer = outcome.answers[name]
    assert answer.status == status
    assert says in answer.json["error"]


def test_the_door_refuses_junk_lines_and_goes_on_answering(outcome: Outcome) -> None:
    junk, good = outcome.answers["junk lines"], outcome.answers["good"]
    assert (junk.status, junk.json["accepted"]) == (202, 0)
    assert {one["reason"] for one in junk.json["rejected"]} == {"malformed"}
    assert good.status == 200
    assert (good.json["release"], bool(good.json["items"])) == ("r0000", True)


def test_the_emitter_refuses_a_2_mb_query_and_keeps_the_rest(loop: Loop, outcome: Outcome) -> None:
    with Emitter(loop.bootstrap, topic=loop.kafka.topic) as emitter:
        emitter.emit(Query(event_id="before", ts=outcome.now, session_id="s", query="q"))
        with pytest.raises(EventError, match=r"too_large: line of \d+ bytes, at most 65536 are allowed"):
            emitter.emit(Query(event_id="huge", ts=outcome.now, session_id="s", query="x" * MEGABYTES_2))
        emitter.emit(Query(event_id="after", ts=outcome.now, session_id="s", query="q"))
        assert emitter.flush(30)
        assert emitter.counters().delivered == emitter.counters().emitted == 2


def test_a_full_emitter_says_so_and_delivers_what_it_holds_once_a_broker_is_there() -> None:
    port = free_port()
    settings = EmitterSettings(max_buffered=3, delivery_timeout_s=60)
    with Emitter(f"127.0.0.1:{port}", settings) as emitter:
        for number in range(3):
            emitter.emit(Query(event_id=f"e{number}", ts=time.time(), session_id="s", query="q"))
        with pytest.raises(QueueFull, match=rf"3 events .* wait for the broker at 127.0.0.1:{port}; emitter.max_buffered is 3"):
            emitter.emit(Query(event_id="e3", ts=time.time(), session_id="s", query="q"))
        with EmbeddedBroker(port) as broker:
            create_topics(broker.bootstrap, KafkaSettings())
            assert emitter.flush(30)
            counters = emitter.counters()
    assert (counters.delivered, counters.refused, counters.failed) == (3, 1, 0)


@dataclass(frozen=True)
class Door:
    """A server without a broker and with small queues, on a data folder of its own."""

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
def door(policy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    place = tmp_path_factory.mktemp("door")
    data = Path(shutil.copytree(policy_data, place / "data"))
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
        yield Door(child, url, data)


def test_a_full_buffer_is_answered_503_with_retry_after_and_lists_are_still_answered(door: Door) -> None:
    events = [query(f"e{number}", time.time()) for number in range(20)]
    answer = call(f"{door.url}/v1/events", b"\n".join(events), "application/x-ndjson")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "emitter.max_buffered is 10" in answer.json["error"]
    assert 0 < answer.json["accepted"] <= 10
    assert door.recommend().status == 200
    assert door.metric("queryloop_impressions_lost_total", reason="queue_full") >= 1


def test_a_full_queue_is_answered_503_with_retry_after_and_the_waiting_ones_are_answered(door: Door) -> None:
    with ThreadPoolExecutor(12) as callers:
        answers = list(callers.map(lambda _: door.recommend(), range(12)))
    assert {answer.status for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status == 503]
    assert all(answer.json["error"] == "2 requests wait already" for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert door.recommend().status == 200


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
def test_a_corrupt_release_leaves_the_old_one_live_and_says_which_file(door: Door, spoil: Any, says: str) -> None:
    release = publish_policy(door.data)
    spoil(release)
    name_champion(door.data, release.id)
    door.wait(lambda ready: ready["error"], "saying why the release cannot go live")
    ready = door.ready()
    assert (ready["ready"], ready["release"]) == (True, "r0000")
    assert release.id in ready["error"] and says in ready["error"]
    assert door.metric("queryloop_release_load_failed") == 1
    assert door.recommend().json["release"] == "r0000"
    name_champion(door.data, "r0000")
    door.wait(lambda ready: ready["error"] is None, "over it")
    assert door.metric("queryloop_release_load_failed") == 0


def test_a_damaged_rollout_changes_nothing_and_is_named(door: Door) -> None:
    rollout = door.data / "releases" / "rollout.json"
    before = rollout.read_bytes()
    rollout.write_text("{")
    door.wait(lambda ready: ready["error"], "saying that the rollout is damaged")
    assert "rollout.json" in door.ready()["error"]
    assert door.recommend().json["release"] == "r0000"
    rollout.write_bytes(before)
    door.wait(lambda ready: ready["error"] is None, "over it")


def test_a_good_release_still_goes_live_after_all_that(door: Door) -> None:
    release = publish_policy(door.data)
    registry.promote(door.data, release.id)
    door.wait(lambda ready: ready["release"] == release.id, "answering with the good release")
    assert door.ready()["error"] is None
    assert door.recommend().json["release"] == release.id


def name_champion(data: Path, name: str) -> None:
    """Point the rollout at a release by hand: `promote` would not take one without a readable manifest."""
    aside = data / "rollout.part"
    aside.write_text(json.dumps({"champion": name}))
    aside.replace(data / "releases" / "rollout.json")


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it printed."""

    code: int | None
    text: str


def run_all(commands: dict[str, list[str]], environ: dict[str, str], place: Path) -> dict[str, Ended]:
    """Run commands at the same time, each to its end."""
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(name, [sys.executable, "-m", *command], place / f"{name}.log", environ))
            for name, command in commands.items()
        }
        return {name: Ended(child.sleep(60), child.tail()) for name, child in children.items()}


ENTRIES = {"worker": ["streams"], "serving": ["serving"], "trainers": ["trainers"], "front door": ["queryloop", "config"]}


@pytest.fixture(scope="module")
def mistyped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Every process, started with a key that does not exist."""
    environ = environ_of(Settings()) | {"QUERYLOOP_DATA_FOLDER": "/tmp/x", "QUERYLOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    return run_all(ENTRIES, environ, tmp_path_factory.mktemp("mistyped"))


@pytest.mark.parametrize("name", ENTRIES)
def test_a_settings_typo_stops_every_process_with_the_key_and_what_is_allowed(mistyped: dict[str, Ended], name: str) -> None:
    assert mistyped[name].code == 2
    assert "QUERYLOOP_DATA_FOLDER: unknown key data.folder" in mistyped[name].text
    assert "allowed are dir" in mistyped[name].text
    assert "Traceback" not in mistyped[name].text


def test_a_typo_in_the_file_is_named_with_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text("[kafka]\npartitons = 3\nsession_timeout_s = 0\n")
    ended = run_all({"config": ["queryloop", "--config", str(file), "config"]}, environ_of(Settings()), tmp_path)["config"]
    assert ended.code == 2
    assert f"{file}: unknown key kafka.partitons (did you mean partitions?)" in ended.text
    assert f"{file}: kafka.session_timeout_s = 0: Input should be greater than or equal to 1" in ended.text


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[str, Ended], socket.socket]]:
    """Everything that listens, started on one port that a socket of the test's holds."""
    place = tmp_path_factory.mktemp("crowded")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(
            data=DataSettings(dir=place / "data"),
            kafka=KafkaSettings(),
            worker=WorkerSettings(port=port),
            serving=ServingSettings(port=port),
        )
        alone = environ_of(settings) | {"QUERYLOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
        ended = run_all({"worker": ["streams"], "serving": ["serving"]}, alone, place)
        ended |= run_all(
            {"broker": ["queryloop", "broker", "--port", str(port)], "up": ["queryloop", "up"]}, environ_of(settings), place
        )
        yield port, ended, taken


@pytest.mark.parametrize(
    ("name", "code", "setting"),
    [("worker", 1, "worker.port"), ("serving", 2, "serving.port"), ("broker", 3, "another port"), ("up", 3, "worker.port")],
)
def test_a_port_in_use_is_named_with_the_setting_to_change(
    crowded: tuple[int, dict[str, Ended], socket.socket], name: str, code: int, setting: str
) -> None:
    port, ended, taken = crowded
    assert ended[name].code == code
    assert f"{port}" in ended[name].text
    assert setting in ended[name].text
    assert "Traceback" not in ended[name].text
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        taken.accept()[0].close()
