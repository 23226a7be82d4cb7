"""Bad events on real processes: each has a clear message or a quarantine row with a reason, and disturbs nothing else.

Everything is sent once, to the topic and over HTTP, to one worker and one server on each broker, every bad event between good
ones; the tests then look at what became of it.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from queryloop.up.worker_process import WorkerProcess
from serving.releases import registry
from serving.settings import ServingRoot, ServingSettings
from streams.brokers.broker import Broker, EmbeddedBroker
from streams.brokers.topics import KafkaSettings, create_topics
from streams.emitter.emitter import Emitter, EmitterSettings, QueueFull
from streams.events.rules import CountingRules
from streams.events.schema import EventError, Query, Reason, make_event_id
from streams.runtime.processes import free_port
from streams.runtime.settings import DataSettings
from streams.store.held_shards import shard_path
from streams.store.shard import Shard
from streams.worker.settings import StreamsSettings, WorkerSettings
from tests.support.logs import click, impression, query
from tests.support.loops import Answer, call, post, publish_policy, start_serving, wait_serving, wait_worker

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
    """An impression and the click on its first item, to send before and after a bad event."""
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
    """When it was sent, what serving answered, and what the worker made of it."""

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
    answers = call_http(loop.url, now)
    send_events(loop, now)
    events = 3 * len(NAMES) + 3 + 1  # a pair around each bad event; what was accepted of a batch over HTTP; the list it answered

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


def call_http(url: str, now: float) -> dict[str, Answer]:
    """POST everything that is bad, and something good before and after."""
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


def send_events(loop: Loop, now: float) -> None:
    """Send every bad event between two good ones of its own session: in one record where a line can be part of it."""
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


def test_every_event_has_one_outcome_and_status_counts_all_of_them(outcome: Outcome) -> None:
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


def test_post_events_refuses_bad_events_by_index_and_accepts_the_others(outcome: Outcome) -> None:
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
def test_serving_says_what_is_wrong_with_a_body(outcome: Outcome, name: str, status: int, says: str) -> None:
    answer = outcome.answers[name]
    assert answer.status == status
    assert says in answer.json["error"]


def test_serving_refuses_junk_lines_and_goes_on_answering(outcome: Outcome) -> None:
    junk, good = outcome.answers["junk lines"], outcome.answers["good"]
    assert (junk.status, junk.json["accepted"]) == (422, 0)
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
