"""The emitter against real brokers: delivers at least once, keeps sessions together, never waits, reports failures."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from streams.brokers.broker import Broker, EmbeddedBroker, KafkaBroker
from streams.brokers.topics import KafkaSettings, create_topics, end_offsets
from streams.emitter.emitter import Counters, Emitter, EmitterSettings, QueueFull, checked_line
from streams.emitter.record_batches import partition_of
from streams.events.schema import Click, EventError, EventSettings, Impression, Query, Reason, encode, with_extra
from streams.runtime.processes import free_port
from tests.support.decoding import decode_records


def query(number: int, session: str = "s", text: str = "q") -> Query:
    return Query(event_id=f"e{number}", ts=1_600_000_000.0 + number, session_id=session, query=text)


def make_topics(bootstrap: str, name: str, partitions: int = 3) -> str:
    create_topics(bootstrap, KafkaSettings(topic=name, quarantine_topic=f"{name}.q", partitions=partitions))
    return name


def read(bootstrap: str, topic: str) -> dict[int, list[bytes]]:
    """Return the record values of each partition, from the first to the end."""
    ends = {place: end for place, end in end_offsets(bootstrap, topic).items() if end}
    consumer = KafkaConsumer(bootstrap_servers=bootstrap)
    places = [TopicPartition(topic, partition) for partition in ends]
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    found: dict[int, list[bytes]] = defaultdict(list)
    deadline = time.monotonic() + 20
    while any(len(found[one]) < end for one, end in ends.items()) and time.monotonic() < deadline:
        for place, records in consumer.poll(timeout_ms=200).items():
            found[place.partition] += [record.value for record in records]
    consumer.close()
    return found


def ids(records: dict[int, list[bytes]]) -> list[str]:
    return [event.event_id for values in records.values() for value in values for event in decode_records([(0, value)]).queries]


def wait_until(ready: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.01)


def test_every_event_arrives_and_sessions_keep_their_order(bootstrap: str, unique: str) -> None:
    topic = make_topics(bootstrap, unique)
    sent = [query(number, f"s{number % 17}") for number in range(1000)]
    with Emitter(bootstrap, EmitterSettings(batch_events=10), topic=topic) as emitter:
        for event in sent:
            emitter.emit(event)
        assert emitter.flush(30)
        assert emitter.counters() == Counters(emitted=1000, delivered=1000)
        assert emitter.positions() == end_offsets(bootstrap, topic)
    arrived: dict[str, list[Query]] = defaultdict(list)
    for partition, values in read(bootstrap, topic).items():
        for value in values:
            decoded = decode_records([(0, value)])
            assert 1 <= len(decoded) <= 10
            for event in decoded.queries:
                assert partition_of(event.session_id, 3) == partition
                arrived[event.session_id].append(event)
    assert arrived == {f"s{k}": [one for one in sent if one.session_id == f"s{k}"] for k in range(17)}


def test_all_types_arrive_as_they_were_made(bootstrap: str, unique: str) -> None:
    topic = make_topics(bootstrap, unique, 1)
    shown = Impression(
        event_id="i",
        ts=1.5,
        session_id="s",
        query="q",
        impression_id="i1",
        items=("a", "b"),
        release="r0000",
        decoding={"top_p": 1.0},
    )
    clicked = Click(event_id="c", ts=2.5, session_id="s", query="q", impression_id="i1", position=1, item="b")
    with Emitter(bootstrap, topic=topic) as emitter:
        for event in (query(0, text="\x1b[31m\u202e\x00"), with_extra(shown, {"context": [1]}), clicked):
            emitter.emit(event)
    (value,) = read(bootstrap, topic)[0]
    decoded = decode_records([(0, value)])
    assert decoded.queries == [query(0, text="\x1b[31m\u202e\x00")]
    assert decoded.impressions == [shown]
    assert decoded.impressions[0].extra == b'{"context":[1]}'
    assert decoded.clicks == [clicked]


def test_raw_lines_are_delivered_unchanged_for_the_workers_to_judge(bootstrap: str, unique: str) -> None:
    topic = make_topics(bootstrap, unique, 1)
    with Emitter(bootstrap, topic=topic) as emitter:
        for line in (b"\xff\x00 junk", b"{", b"x" * 100_000):
            emitter.emit_line(line, "s")
        with pytest.raises(EventError, match="line break"):
            emitter.emit_line(b"a\nb", "s")
        with pytest.raises(EventError, match="1000000 bytes"):
            emitter.emit_line(b"x" * 1_000_000, "s")
    assert b"\n".join(read(bootstrap, topic)[0]).split(b"\n") == [b"\xff\x00 junk", b"{", b"x" * 100_000]


def test_large_events_stay_below_the_brokers_record_limit(bootstrap: str, unique: str) -> None:
    topic = make_topics(bootstrap, unique, 1)
    with Emitter(bootstrap, topic=topic) as emitter:
        for number in range(40):
            emitter.emit(with_extra(query(number), {"response": "x" * 60_000}))
        assert emitter.flush(30)
    records = read(bootstrap, topic)
    assert sorted(ids(records)) == sorted(f"e{number}" for number in range(40))
    assert max(map(len, records[0])) <= 900_000


def test_an_event_is_sent_after_the_batching_delay_though_the_batch_is_not_full(bootstrap: str, unique: str) -> None:
    topic = make_topics(bootstrap, unique, 1)
    with Emitter(bootstrap, EmitterSettings(batch_events=1000, linger_ms=20), topic=topic) as emitter:
        for number in range(3):
            emitter.emit(query(number))
            wait_until(lambda: emitter.counters().buffered == 0, 10)
        assert emitter.counters() == Counters(emitted=3, delivered=3)


def test_many_threads_may_emit_at_once(bootstrap: str, unique: str) -> None:
    topic = make_topics(bootstrap, unique)
    with Emitter(bootstrap, topic=topic) as emitter:

        def emit(worker: int) -> None:
            for number in range(500):
                emitter.emit(query(worker * 1000 + number, f"s{worker}"))

        threads = [threading.Thread(target=emit, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert emitter.flush(30)
        assert emitter.counters() == Counters(emitted=2000, delivered=2000)
    assert sorted(ids(read(bootstrap, topic))) == sorted(f"e{w * 1000 + n}" for w in range(4) for n in range(500))


@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_a_broker_that_is_down_for_some_seconds_loses_nothing(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(f"{kind}_broker")  # skips where this kind cannot run
    port = free_port()
    broker: EmbeddedBroker | KafkaBroker = EmbeddedBroker(port) if kind == "embedded" else KafkaBroker(tmp_path, port)
    try:
        broker.start()
        topic = make_topics(broker.bootstrap, "events", 2)
        with Emitter(broker.bootstrap, EmitterSettings(delivery_timeout_s=120), topic=topic) as emitter:
            for number in range(100):
                emitter.emit(query(number, f"s{number}"))
            assert emitter.flush(30)
            assert broker.child is not None
            broker.child.kill()
            broker.stop()
            for number in range(100, 1100):
                emitter.emit(query(number, f"s{number}"))
            assert not emitter.flush(2)
            assert emitter.counters() == Counters(emitted=1100, delivered=100, buffered=1000)
            broker.start()
            make_topics(broker.bootstrap, topic, 2)
            assert emitter.flush(60)
            assert replace(emitter.counters(), topic_changes=0) == Counters(emitted=1100, delivered=1100)
            assert emitter.counters().topic_changes == (0 if broker.durable else 1)
        arrived = set(ids(read(broker.bootstrap, topic)))
        assert arrived >= {f"e{number}" for number in range(0 if broker.durable else 100, 1100)}
    finally:
        broker.stop()


def test_a_broker_may_start_after_the_emitter(tmp_path: Path) -> None:
    broker = EmbeddedBroker(free_port())
    with Emitter(broker.bootstrap) as emitter:
        emitter.emit(query(0))
        assert not emitter.flush(0.5)
        with broker:
            make_topics(broker.bootstrap, "events", 1)
            assert emitter.flush(30)
            assert emitter.counters() == Counters(emitted=1, delivered=1)


def nobody() -> str:
    return f"127.0.0.1:{free_port()}"


def test_emitting_never_waits_for_the_broker() -> None:
    emitter = Emitter(nobody(), EmitterSettings(delivery_timeout_s=1))
    slowest = 0.0
    for number in range(2000):
        began = time.monotonic()
        emitter.emit(query(number))
        slowest = max(slowest, time.monotonic() - began)
    assert slowest < 0.5
    assert not emitter.close(0)


def test_a_full_buffer_refuses_and_says_so() -> None:
    emitter = Emitter(nobody(), EmitterSettings(max_buffered=3, delivery_timeout_s=60))
    for number in range(3):
        emitter.emit(query(number))
    with pytest.raises(QueueFull, match=r"3 events .* wait for the broker at .*emitter\.max_buffered is 3"):
        emitter.emit(query(3))
    assert emitter.counters() == Counters(emitted=3, buffered=3, refused=1)
    emitter.close(0)


def test_the_buffer_is_bounded_in_bytes_too() -> None:
    emitter = Emitter(nobody(), EmitterSettings(max_buffered_bytes=1_000_000, delivery_timeout_s=60))
    emitter.emit_line(b"x" * 800_000, "s")
    with pytest.raises(QueueFull, match="max_buffered_bytes 1000000"):
        emitter.emit_line(b"x" * 300_000, "s")
    emitter.close(0)


def test_an_undeliverable_event_is_counted_reported_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    lost: list[tuple[Sequence[bytes], str]] = []
    address = nobody()
    settings = EmitterSettings(delivery_timeout_s=0.2)
    emitter = Emitter(address, settings, on_failure=lambda lines, reason: lost.append((lines, reason)))
    for number in range(5):
        emitter.emit(query(number, text="\x1b[31mhidden"))
    wait_until(lambda: len(lost) > 0)
    assert emitter.counters() == Counters(emitted=5, failed=5)
    assert [line for lines, _ in lost for line in lines] == [encode(query(number, text="\x1b[31mhidden")) for number in range(5)]
    assert address in lost[0][1]
    errors = [
        record.getMessage() for record in caplog.records if record.levelno == logging.ERROR and record.name.startswith("streams")
    ]
    assert any("event=delivery_failed" in one and "events=5" in one and "action=" in one for one in errors)
    assert "hidden" not in caplog.text
    emitter.close(0)


def test_a_callback_that_raises_does_not_stop_the_emitter(caplog: pytest.LogCaptureFixture) -> None:
    def broken(lines: Sequence[bytes], reason: str) -> None:
        raise ZeroDivisionError

    emitter = Emitter(nobody(), EmitterSettings(delivery_timeout_s=0.2), on_failure=broken)
    emitter.emit(query(0))
    wait_until(lambda: emitter.counters().failed == 1)
    emitter.emit(query(1))
    wait_until(lambda: emitter.counters().failed == 2)
    emitter.close(0)
    assert "event=on_failure_raised" in caplog.text


def test_closing_without_a_broker_counts_the_rest_as_failed() -> None:
    lost: list[bytes] = []
    emitter = Emitter(nobody(), on_failure=lambda lines, reason: lost.extend(lines))
    emitter.emit(query(0))
    assert not emitter.close(0.1)
    assert emitter.counters() == Counters(emitted=1, failed=1)
    assert lost == [encode(query(0))]
    with pytest.raises(RuntimeError, match="closed"):
        emitter.emit(query(1))


def test_no_thread_is_left_after_closing(embedded_broker: Broker, unique: str) -> None:
    before = set(threading.enumerate())
    with Emitter(embedded_broker.bootstrap, topic=make_topics(embedded_broker.bootstrap, unique, 1)) as emitter:
        emitter.emit(query(0))
    wait_until(lambda: set(threading.enumerate()) <= before, 10)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (query(0, text=""), Reason.INVALID),
        (query(0, text="x" * 513), Reason.TOO_LARGE),
        (query(0, session=""), Reason.INVALID),
        (query(0, text="\ud800"), Reason.INVALID),
        (with_extra(query(0), {"response": "x" * 70_000}), Reason.TOO_LARGE),
        (Query(event_id="e", ts=float("nan"), session_id="s", query="q"), Reason.INVALID),
        (Query(event_id="e", ts=1.6e12, session_id="s", query="q"), Reason.INVALID),
        (Impression(event_id="e", ts=1, session_id="s", query="q", impression_id="i", items=()), Reason.INVALID),
        (
            Impression(event_id="e", ts=1, session_id="s", query="q", impression_id="i", items=("a",), decoding={"x": object()}),
            Reason.INVALID,
        ),
        (
            Impression(event_id="e", ts=1, session_id="s", query="q", impression_id="i", items=("a",), predicted=(float("nan"),)),
            Reason.INVALID,
        ),
        (Click(event_id="e", ts=1, session_id="s", query="q", impression_id="i", position=-1), Reason.INVALID),
    ],
)
def test_an_event_that_workers_would_refuse_is_refused_by_emit(event: Query | Impression | Click, reason: Reason) -> None:
    with pytest.raises(EventError) as error:
        checked_line(event)
    assert error.value.reason is reason


def test_the_limits_of_an_event_are_settable() -> None:
    with pytest.raises(EventError):
        checked_line(query(0, text="abcd"), EventSettings(max_query_chars=3, max_line_bytes=300))


@pytest.mark.parametrize("bootstrap", ["", "broker", "broker:", "broker:99999", "a:1,b", "http://broker:9092"])
def test_an_address_without_a_port_is_refused_at_once(bootstrap: str) -> None:
    with pytest.raises(ValueError, match="no host:port"):
        Emitter(bootstrap)


def test_what_is_no_event_is_refused_with_what_is_one() -> None:
    emitter = Emitter(f"127.0.0.1:{free_port()}")
    for event in ({"type": "query"}, b"{}", "{}", None):
        with pytest.raises(TypeError, match=r"emit takes a Query, Impression or Click of streams\.events, not "):
            emitter.emit(event)  # type: ignore[arg-type]
    assert emitter.counters() == Counters()
    emitter.close(0)
