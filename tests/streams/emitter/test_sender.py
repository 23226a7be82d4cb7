"""The emitter with an outbox: emitted events are delivered, in order, over every loss of broker, process, topic and disk."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

from streams.brokers.broker import Broker, EmbeddedBroker, KafkaBroker
from streams.brokers.topics import KafkaSettings, create_topics, end_offsets
from streams.emitter.counters import FlushMarker
from streams.emitter.emitter import Emitter, EmitterSettings, OutboxError, QueueFull
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line
from streams.emitter.sender import CHUNK_BYTES, CHUNK_LINES, _split
from streams.events.schema import Query
from streams.runtime.processes import free_port

EMIT_FOR_EVER = """
import sys
from pathlib import Path
from streams.emitter.emitter import Emitter, EmitterSettings
from streams.events import Query
bootstrap, folder = sys.argv[1:]
emitter = Emitter(bootstrap, EmitterSettings(outbox_dir=Path(folder)))
number = 0
while True:
    for _ in range(50):
        emitter.emit(Query(event_id=f"e{number}", ts=1.6e9 + number, session_id=f"s{number % 7}", query="q"))
        number += 1
    assert emitter.store()
    print(number, flush=True)
"""


def query(number: int) -> Query:
    return Query(event_id=f"e{number}", ts=1.6e9 + number, session_id=f"s{number % 7}", query="q")


def settings(folder: Path, **more: object) -> EmitterSettings:
    return EmitterSettings.model_validate({"outbox_dir": folder, "outbox_sync_s": 0.2, **more})


def make_topics(bootstrap: str, name: str = "events") -> str:
    create_topics(bootstrap, KafkaSettings(topic=name, quarantine_topic=f"{name}.q", partitions=2))
    return name


def wait_until(ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def read(bootstrap: str, topic: str) -> dict[int, list[int]]:
    """The numbers of the events in each partition, in the order of the log."""
    ends = end_offsets(bootstrap, topic)
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    places = [TopicPartition(topic, partition) for partition, end in ends.items() if end]
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    found: dict[int, list[int]] = defaultdict(list)
    deadline = time.monotonic() + 30
    while any(consumer.position(place) < ends[place.partition] for place in places):
        assert time.monotonic() < deadline
        for place, records in consumer.poll(timeout_ms=200).items():
            found[place.partition] += [
                int(json.loads(one)["event_id"][1:]) for record in records for one in record.value.split(b"\n")
            ]
    consumer.close()
    return found


def first_seen(numbers: Sequence[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


def check_all_in_order(found: dict[int, list[int]], count: int) -> None:
    """Every event is there, and the first copies of a partition's events are in the order of emission."""
    assert sorted({number for numbers in found.values() for number in numbers}) == list(range(count))
    for numbers in found.values():
        assert first_seen(numbers) == sorted(first_seen(numbers))


def test_a_broker_killed_while_events_are_emitted_loses_none_and_keeps_their_order(kafka_broker: Broker, tmp_path: Path) -> None:
    with KafkaBroker(tmp_path, free_port()) as broker:
        topic = make_topics(broker.bootstrap)
        with Emitter(broker.bootstrap, settings(tmp_path / "out", max_buffered=1000, max_buffered_bytes=1_000_000)) as emitter:
            for number in range(3000):
                emitter.emit(query(number))
                if number == 1500:
                    assert broker.child is not None
                    broker.child.kill()
                if number % 100 == 0:
                    assert emitter.store()
            assert emitter.store()
            waiting = emitter.counters()
            assert waiting.emitted == 3000 and waiting.buffered == waiting.on_disk >= 1400
            broker.stop()
            broker.start()
            assert emitter.flush(60)
            assert emitter.counters().delivered == 3000
        check_all_in_order(read(broker.bootstrap, topic), 3000)


def test_an_emitter_killed_after_storing_loses_no_event_and_makes_no_new_ids(bootstrap: str, unique: str, tmp_path: Path) -> None:
    away = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen([sys.executable, "-c", EMIT_FOR_EVER, away, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    stored = 0
    while stored < 1000:
        stored = int(process.stdout.readline())
    process.kill()
    rest = process.stdout.read().split()
    process.wait()
    process.stdout.close()
    stored = max([stored, *(int(one) for one in rest if one.isdigit())])
    topic = make_topics(bootstrap, unique)
    with Emitter(bootstrap, settings(tmp_path), topic=topic) as emitter:
        recovered = emitter.counters().recovered
        assert stored <= recovered <= stored + 200
        assert emitter.flush(60)
        assert emitter.counters().delivered == recovered
    check_all_in_order(read(bootstrap, topic), recovered)
    with Emitter(bootstrap, settings(tmp_path), topic=topic) as emitter:
        assert emitter.counters().recovered == 0, "what is delivered is not sent again"


def test_events_of_an_earlier_process_are_sent_before_newer_ones(bootstrap: str, unique: str, tmp_path: Path) -> None:
    with Emitter(f"127.0.0.1:{free_port()}", settings(tmp_path)) as emitter:
        for number in range(500):
            emitter.emit(query(number))
        assert emitter.close(0), "nothing is lost: it is on disk"
        assert emitter.counters().buffered == emitter.counters().on_disk == 500
    topic = make_topics(bootstrap, unique)
    with Emitter(bootstrap, settings(tmp_path), topic=topic) as emitter:
        for number in range(500, 600):
            emitter.emit(query(number))
        assert emitter.flush(60)
        counters = emitter.counters()
        assert (counters.emitted, counters.recovered, counters.delivered) == (100, 500, 600)
    found = read(bootstrap, topic)
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(600))
    check_all_in_order(found, 600)


def test_a_topic_deleted_and_made_anew_gets_all_kept_events_again(kafka_broker: Broker, unique: str, tmp_path: Path) -> None:
    topic = make_topics(kafka_broker.bootstrap, unique)
    with Emitter(kafka_broker.bootstrap, settings(tmp_path), topic=topic) as emitter:
        for number in range(2000):
            emitter.emit(query(number))
        assert emitter.flush(30)
        with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap) as admin:
            admin.delete_topics([topic])
        for number in range(2000, 2500):
            emitter.emit(query(number))
        wait_until(lambda: topic not in list_topics(kafka_broker.bootstrap))
        make_topics(kafka_broker.bootstrap, unique)
        wait_until(lambda: emitter.counters().topic_changes == 1)
        for number in range(2500, 2600):
            emitter.emit(query(number))
        assert emitter.flush(60)
        counters = emitter.counters()
        assert (counters.emitted, counters.delivered, counters.buffered) == (2600, 2600, 0)
        assert counters.resent >= 2000
        assert emitter.positions() == end_offsets(kafka_broker.bootstrap, topic)
    found = read(kafka_broker.bootstrap, topic)
    assert sorted({number for numbers in found.values() for number in numbers}) == list(range(2600))
    for numbers in found.values():
        resent = numbers[numbers.index(min(numbers)) :]
        assert first_seen(resent) == sorted(set(resent)), "in order from the oldest on; a few that were in flight may lie before"


def list_topics(bootstrap: str) -> list[str]:
    with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        return list(admin.list_topics())


def test_a_broker_that_lost_its_memory_gets_all_events_again(embedded_broker: Broker, tmp_path: Path) -> None:
    broker = EmbeddedBroker(free_port())
    with broker:
        make_topics(broker.bootstrap)
        with Emitter(broker.bootstrap, settings(tmp_path)) as emitter:
            for number in range(1000):
                emitter.emit(query(number))
            assert emitter.flush(30)
            broker.stop()
            broker.start()
            make_topics(broker.bootstrap)
            wait_until(lambda: emitter.counters().topic_changes == 1)
            assert emitter.flush(60)
            counters = emitter.counters()
            assert (counters.delivered, counters.resent, counters.buffered) == (1000, 1000, 0)
        check_all_in_order(read(broker.bootstrap, "events"), 1000)


def test_a_topic_made_anew_between_two_processes_is_noticed_too(bootstrap: str, unique: str, tmp_path: Path) -> None:
    for name in (unique, f"{unique}-2"):
        with Emitter(bootstrap, settings(tmp_path), topic=make_topics(bootstrap, name)) as emitter:
            if name == unique:
                for number in range(300):
                    emitter.emit(query(number))
            assert emitter.flush(30)
            wait_until(lambda emitter=emitter, name=name: emitter.counters().topic_changes == (name != unique))  # type: ignore[misc]
            assert emitter.flush(30)
    check_all_in_order(read(bootstrap, f"{unique}-2"), 300)


def test_a_full_outbox_drops_the_oldest_and_reports_them(bootstrap: str, unique: str, tmp_path: Path) -> None:
    lost: list[bytes] = []
    reasons: set[str] = set()

    def keep(lines: Sequence[bytes], reason: str) -> None:
        lost.extend(lines)
        reasons.add(reason)

    small = settings(tmp_path, outbox_max_bytes=1_000_000, max_buffered_bytes=1_000_000, outbox_full="drop_oldest")
    with Emitter(f"127.0.0.1:{free_port()}", small, on_failure=keep) as emitter:
        for number in range(600):
            emitter.emit_line(b'{"event_id": "e%d"}%s' % (number, b" " * 5000), "s")
            if number % 10 == 0:
                assert emitter.store()
        assert emitter.store()
        wait_until(lambda: len(lost) == emitter.counters().dropped)
        counters = emitter.counters()
        assert counters.emitted == 600 == counters.failed + counters.buffered
        assert counters.dropped == counters.failed > 0
        assert sum(path.stat().st_size for path in tmp_path.glob("*.log")) <= 1_000_000
        assert emitter.close(0)
    dropped = [int(json.loads(line)["event_id"][1:]) for line in lost]
    assert dropped == sorted(dropped), "oldest first"
    assert any("emitter.outbox_max_bytes is 1000000" in reason for reason in reasons)
    topic = make_topics(bootstrap, unique)
    with Emitter(bootstrap, small, topic=topic) as emitter:
        assert emitter.flush(30)
    there = {number for numbers in read(bootstrap, topic).values() for number in numbers}
    assert there | set(dropped) == set(range(600)), "an event is delivered, or it was reported"
    assert set(range(500, 600)) <= there


def test_a_full_outbox_that_refuses_loses_no_event_it_accepted(bootstrap: str, unique: str, tmp_path: Path) -> None:
    small = settings(tmp_path, outbox_max_bytes=1_000_000, outbox_full="refuse")
    taken = 0
    with Emitter(f"127.0.0.1:{free_port()}", small) as emitter:
        with pytest.raises(QueueFull, match=r"outbox .* is full; emitter\.outbox_max_bytes is 1000000"):
            while True:
                emitter.emit_line(b'{"event_id": "e%d"}%s' % (taken, b" " * 5000), "s")
                taken += 1
        assert emitter.counters().refused == 1 and emitter.counters().dropped == 0
        assert emitter.close(0)
    assert 150 <= taken < 200
    topic = make_topics(bootstrap, unique)
    with Emitter(bootstrap, small, topic=topic) as emitter:
        assert emitter.flush(30)
        wait_until(lambda: emits(emitter, taken), 10)
        assert emitter.flush(30)
    check_all_in_order(read(bootstrap, topic), taken + 1)


def emits(emitter: Emitter, number: int) -> bool:
    """Whether there is room for one more again."""
    try:
        emitter.emit(query(number))
    except QueueFull:
        return False
    return True


def test_a_full_disk_does_not_stop_delivery_and_is_logged_once(
    bootstrap: str, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(outbox: Outbox, lines: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    topic = make_topics(bootstrap, unique)
    with caplog.at_level(logging.WARNING), Emitter(bootstrap, settings(tmp_path), topic=topic) as emitter:
        emitter.emit(query(0))
        assert emitter.flush(30)
        with monkeypatch.context() as patched:
            patched.setattr(Outbox, "append", full)
            for number in range(1, 500):
                emitter.emit(query(number))
            assert emitter.flush(30)
        emitter.emit(query(500))
        assert emitter.flush(30)
        assert emitter.counters().delivered == 501
    said = [one.getMessage().split()[0] for one in caplog.records if one.name == "streams.emitter.send_buffer"]
    assert said == ["event=outbox_failed", "event=outbox_back"]
    check_all_in_order(read(bootstrap, topic), 501)


def test_events_are_on_disk_at_once_though_no_broker_answers(tmp_path: Path) -> None:
    emitter = Emitter(f"127.0.0.1:{free_port()}", settings(tmp_path))
    slowest, until = 0.0, time.monotonic() + 4
    number = 0
    while time.monotonic() < until:
        emitter.emit(query(number))
        number += 1
        began = time.monotonic()
        assert emitter.store()
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(0.01)
    assert slowest < 1, "connecting takes two seconds, and nobody waits for it"
    assert emitter.counters().on_disk == number
    emitter.close(0)


def test_two_emitters_cannot_share_an_outbox(tmp_path: Path) -> None:
    with Emitter("127.0.0.1:1", settings(tmp_path)) as emitter:
        with pytest.raises(OutboxError, match="another process uses"):
            Emitter("127.0.0.1:1", settings(tmp_path))
        emitter.close(0)


def test_storing_without_an_outbox_waits_for_kafkas_acknowledgement(bootstrap: str, unique: str) -> None:
    with Emitter(bootstrap, topic=make_topics(bootstrap, unique)) as emitter:
        emitter.emit(query(0))
        assert emitter.store(30) and emitter.counters().delivered == 1
    assert emitter.store(), "also after closing"


def test_storing_without_an_outbox_and_without_kafka_is_refused() -> None:
    emitter = Emitter("127.0.0.1:1", EmitterSettings(delivery_timeout_s=60))
    emitter.emit(query(0))
    assert not emitter.store(30)
    assert not emitter.close(0)
    assert not emitter.store()


@given(st.lists(st.one_of(st.integers(0, 200_000), st.none()), max_size=30), st.integers(1, 300))
def test_lines_are_split_into_frames_in_order_around_the_markers(sizes: list[int | None], times: int) -> None:
    taken = [FlushMarker() if size is None else Line(b"x" * size, "s", 0.0) for size in sizes] + [Line(b"", "s", 0.0)] * times
    chunks = list(_split(taken))
    assert [one for chunk in chunks for one in (chunk if isinstance(chunk, list) else [chunk])] == taken
    for chunk in chunks:
        if isinstance(chunk, list):
            assert 1 <= len(chunk) <= CHUNK_LINES
            assert len(chunk) == 1 or sum(len(one.line) for one in chunk) <= CHUNK_BYTES
