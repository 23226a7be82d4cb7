"""Delivery: every record gets exactly one outcome, is sent again while that can help, and else fails with a reason."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from kafka.errors import InvalidTopicError, KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, UnknownProducerIdError

from streams.emitter.delivery import RECONNECT_S, Delivery, is_permanent
from streams.emitter.record_batches import Record

TIMEOUT_S = 30.0


class Promise:
    """The part of kafka-python's future that is used; the test completes it once."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []
        self._done = False

    def add_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.insert(0, callback)

    def add_errback(self, callback: Callable[[Exception], None]) -> None:
        self._callbacks.append(callback)

    def succeed(self, offset: int) -> None:
        if not self._done:
            self._done = True
            self._callbacks[0](SimpleNamespace(offset=offset))

    def fail(self, error: Exception) -> None:
        if not self._done:
            self._done = True
            self._callbacks[1](error)


class Producer:
    """A producer whose broker is the test. Closing fails the pending promises, at once unless it is `lazy`."""

    def __init__(self, lazy: bool) -> None:
        self.sent: list[tuple[bytes, int, Promise]] = []
        self.refusal: Exception | None = None
        self._lazy = lazy

    def partitions_for(self, topic: str) -> set[int]:
        return {0, 1}

    def send(self, topic: str, value: bytes, key: bytes, partition: int) -> Promise:
        if self.refusal is not None:
            raise self.refusal
        self.sent.append((value, partition, Promise()))
        return self.sent[-1][2]

    def close(self, timeout: float) -> None:
        for _, _, promise in () if self._lazy else self.sent:
            promise.fail(KafkaError("aborted"))


class Broker:
    """A scripted broker, and the outcome of each record."""

    def __init__(self, lazy: bool = False) -> None:
        self.now = 100.0
        self.lazy = lazy
        self.up = True
        self.producers: list[Producer] = []
        self.outcomes: list[tuple[bytes, int | None, str]] = []
        changed = threading.Condition()
        self.delivery = Delivery("b:1", "events", TIMEOUT_S, self.record_outcome, changed, lambda: self.now, self.connect)

    def connect(self, bootstrap: str, timeout_s: float) -> Any:
        if not self.up:
            raise KafkaTimeoutError("nobody there")
        self.producers.append(Producer(self.lazy))
        return self.producers[-1]

    def record_outcome(self, record: Record, offset: int | None, reason: str) -> None:
        self.outcomes.append((record.value, offset, reason))

    def send(self, *names: str) -> None:
        assert self.delivery.advance()
        for name in names:
            self.delivery.send(Record(0, b"key", self.now, [name.encode()]))

    def wait(self, seconds: float = RECONNECT_S) -> bool:
        self.now += seconds
        return self.delivery.advance()

    @property
    def promises(self) -> list[Promise]:
        return [promise for _, _, promise in self.producers[-1].sent]


def test_an_acknowledged_record_is_delivered_at_its_offset() -> None:
    broker = Broker()
    broker.send("a")
    assert broker.delivery.partitions == 2
    broker.promises[0].succeed(7)
    assert broker.outcomes == [(b"a", 7, "")]
    assert broker.delivery.lowest_number() is None


def test_a_record_that_failed_early_is_sent_again_by_a_new_producer() -> None:
    broker = Broker()
    broker.send("a", "b")
    broker.promises[0].fail(UnknownProducerIdError())
    assert not broker.delivery.advance(), "a new producer waits a moment"
    assert broker.wait()
    assert len(broker.producers) == 2
    assert sorted(value for value, _, _ in broker.producers[1].sent) == [b"a", b"b"]
    for number, promise in enumerate(broker.promises):
        promise.succeed(number)
    assert sorted(broker.outcomes) == [(b"a", 0, ""), (b"b", 1, "")]
    assert broker.wait()
    assert len(broker.producers) == 2, "the records that the old producer aborted do not cost the new one"


def test_a_record_that_can_never_be_accepted_fails_at_once_and_alone() -> None:
    broker = Broker()
    broker.send("a", "b")
    broker.promises[0].fail(MessageSizeTooLargeError("too big"))
    assert broker.delivery.advance()
    assert len(broker.producers) == 1
    assert [(value, offset) for value, offset, _ in broker.outcomes] == [(b"a", None)]
    assert "too big" in broker.outcomes[0][2]


@pytest.mark.parametrize("error", [KafkaTimeoutError("no metadata"), ValueError("Unrecognized partition 0"), OSError("broken")])
def test_a_producer_that_refuses_is_replaced(error: Exception) -> None:
    broker = Broker()
    assert broker.delivery.advance()
    broker.producers[0].refusal = error
    broker.send("a")
    assert not broker.delivery.advance()
    assert broker.wait()
    broker.promises[0].succeed(0)
    assert broker.outcomes == [(b"a", 0, "")]


def test_a_record_that_is_not_acknowledged_in_time_fails(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    broker.send("a\x1b[31m")
    broker.up = False
    broker.promises[0].fail(KafkaError("connection lost"))
    with caplog.at_level(logging.WARNING):
        assert not broker.wait(TIMEOUT_S - 1)
        assert broker.outcomes == []
        assert not broker.wait(1)
    assert broker.outcomes == [(b"a\x1b[31m", None, "not acknowledged within 30 s")]
    failed = [one.getMessage() for one in caplog.records if "delivery_failed" in one.getMessage()]
    assert len(failed) == 1
    assert "topic=events partition=0 events=1 waited_s=30.0 broker=b:1" in failed[0]
    assert "action=" in failed[0]
    assert "\x1b" not in caplog.text


def test_a_silent_broker_is_logged_once_and_its_return_once(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    broker.up = False
    with caplog.at_level(logging.INFO):
        assert [broker.wait() for _ in range(5)] == [False] * 5
        broker.up = True
        assert broker.wait()
        assert broker.wait()
    assert [one.getMessage().split()[0] for one in caplog.records] == ["event=broker_silent", "event=broker_back"]
    assert "is it running, and is the address right?" in caplog.records[0].getMessage()


def test_a_broker_that_stops_acknowledging_is_logged_though_it_is_connected(caplog: pytest.LogCaptureFixture) -> None:
    broker = Broker()
    broker.send("a")
    with caplog.at_level(logging.INFO):
        broker.wait(4)
        assert caplog.records == []
        broker.wait(4)
    assert "no acknowledgement" in caplog.text


def test_closing_fails_pending_records() -> None:
    broker = Broker()
    broker.send("a", "b")
    broker.promises[0].succeed(0)
    broker.delivery.close([Record(1, b"", 0.0, [b"c"])], "closed")
    assert sorted(broker.outcomes, key=lambda one: one[0]) == [(b"a", 0, ""), (b"b", None, "closed"), (b"c", None, "closed")]


def test_a_late_acknowledgement_counts_while_there_is_no_outcome_and_never_twice() -> None:
    broker = Broker(lazy=True)
    broker.send("a", "b")
    broker.promises[0].fail(UnknownProducerIdError())
    broker.delivery.advance()
    broker.wait()
    broker.producers[0].sent[1][2].succeed(4)
    assert broker.outcomes == [(b"b", 4, "")]
    broker.delivery.close([], "closed")
    broker.promises[0].succeed(5)
    assert broker.outcomes == [(b"b", 4, ""), (b"a", None, "closed")]


steps = st.lists(
    st.tuples(st.sampled_from(["send", "ack", "error", "permanent", "down", "up", "turn"]), st.integers(0, 5)), max_size=40
)


@given(steps)
def test_every_record_gets_exactly_one_outcome_whatever_happens(script: list[tuple[str, int]]) -> None:
    broker = Broker(lazy=True)
    sent = 0
    for step, number in script:
        promises = [promise for producer in broker.producers for _, _, promise in producer.sent]
        promise = promises[number % len(promises)] if promises else None
        if step == "send" and broker.delivery.advance():
            broker.delivery.send(Record(0, b"", broker.now, [b"%d" % sent]))
            sent += 1
        elif step in ("down", "up"):
            broker.up = step == "up"
        elif step == "turn":
            broker.wait(number * 2.0)
        elif promise is not None and step == "ack":
            promise.succeed(number)
        elif promise is not None:
            promise.fail(KafkaError("hiccup") if step == "error" else MessageSizeTooLargeError("no"))
    broker.up = True
    broker.wait(RECONNECT_S)
    broker.delivery.close([], "closed")
    assert sorted(int(value) for value, _, _ in broker.outcomes) == list(range(sent))


def test_only_refusals_of_the_record_or_the_client_are_permanent() -> None:
    assert is_permanent(InvalidTopicError())
    assert not any(map(is_permanent, (UnknownProducerIdError(), KafkaTimeoutError(), KafkaError(), ValueError())))
