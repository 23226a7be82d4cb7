"""Sender and send buffer against a scripted broker: no line is lost or overtaken, whatever fails in whatever order."""

from __future__ import annotations

import errno
import tempfile
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from kafka.errors import KafkaError, KafkaTimeoutError

from streams.emitter.counters import SendCounters
from streams.emitter.delivery import DEFAULT_FORMAT
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line
from streams.emitter.send_buffer import SendBuffer
from streams.emitter.sender import Sender, SenderSettings
from tests.streams.emitter.test_delivery import Promise
from tests.support.failing_disk import FailingDisk

PARTITIONS = 2


class Simulation:
    """A broker with one topic, and a product process that may be killed. Time passes only when the test says so."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.sender_settings = SenderSettings(3, 0.0, 30.0, max_bytes, 1.0, drop_oldest=True)
        self.now = 0.0
        self.emitted = 0
        self.chunk = 0  # lines accepted at once, at most
        self.log: list[tuple[int, int]] = []  # (partition, number) in the order of arrival
        self.topic_id = uuid.uuid4()
        self.up = True
        self.sent: list[tuple[int, list[int], Promise]] = []
        self.start()

    def start(self) -> None:
        self.outbox = Outbox(self.folder, 10_000_000, 1e9)
        changed = threading.Condition()
        self.sender = Sender(
            "b:1", "t", self.sender_settings, self.outbox, changed, lambda: self.now, self.connect, DEFAULT_FORMAT, None
        )
        delivery: Any = self.sender._delivery
        delivery._connector = SimpleNamespace(poll=delivery._connect_now, close=lambda: None)  # at once, on this thread

    def connect(self, bootstrap: str, timeout_s: float) -> Any:
        if not self.up:
            raise KafkaTimeoutError("nobody there")
        mine = SimpleNamespace(topic_id=lambda topic: self.topic_id)
        return SimpleNamespace(
            _metadata=mine, partitions_for=lambda topic: range(PARTITIONS), send=self.send, close=lambda timeout: None
        )

    def send(self, topic: str, value: bytes, key: bytes, partition: int) -> Promise:
        self.sent.append((partition, [int(line.split()[0]) for line in value.split(b"\n")], Promise()))
        return self.sent[-1][2]

    def emit(self, count: int) -> None:
        for _ in range(count):
            line = b"%d %s" % (self.emitted, b"x" * 100)
            self.sender.queue.append(Line(line, f"s{self.emitted % 5}", self.now))
            counters = self.sender.counters
            counters.emitted += 1
            counters.queued += 1
            counters.queued_bytes += len(line)
            self.emitted += 1

    def cycle(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.chunk = max(self.chunk, len(self.sender.queue))
        self.sender._has_outcomes = True  # never wait
        self.sender._run_once()
        if self.outbox.next > self.sender._buffer.next_to_send:
            self.sender._has_outcomes = True

    def acknowledge(self, count: int) -> None:
        for partition, numbers, promise in self.sent[:count]:
            self.log += [(partition, number) for number in numbers]
            promise.succeed(len(self.log))
        del self.sent[:count]

    def lose(self, arrived: int) -> None:
        """Fail all records in flight, the first `arrived` of which had reached the log unacknowledged."""
        left, self.sent = self.sent, []
        self.log += [(partition, number) for partition, numbers, _ in left[:arrived] for number in numbers]
        for _, _, promise in left:
            promise.fail(KafkaError("connection lost"))

    def remake_topic(self) -> None:
        self.lose(0)
        self.log.clear()
        self.topic_id = uuid.uuid4()

    def restart(self) -> None:
        """Kill -9: nothing more is sent or written. All emitted lines were on disk."""
        while self.sender.queue:
            self.cycle()
        self.sent.clear()
        self.outbox.close()
        self.start()

    def deliver_all(self) -> None:
        self.up = True
        for _ in range(200):
            self.cycle(0.6)
            self.acknowledge(len(self.sent))
            if self.sender.counters.buffered == 0 and not self.sender.counters.resends_pending and not self.sent:
                return
        raise AssertionError(f"not delivered: {self.sender.counters}")


steps = st.lists(
    st.tuples(
        st.sampled_from(["emit", "emit", "cycle", "ack", "ack", "lose", "down", "up", "remake", "restart"]), st.integers(0, 12)
    ),
    max_size=40,
)


FULL = [("emit", 12), ("cycle", 10), ("emit", 12), ("cycle", 10)]


@example([*FULL, ("lose", 0)], 1_000_000)
@example([*FULL, ("lose", 2), ("emit", 12), ("cycle", 0), ("restart", 0)], 1_000_000)
@example([*FULL, ("ack", 12), ("remake", 0), ("emit", 12), ("cycle", 12), ("ack", 2), ("remake", 0)], 500)
@settings(max_examples=150, deadline=None)
@given(steps, st.sampled_from([500, 2_000, 1_000_000]))
def test_every_line_arrives_and_none_is_overtaken(script: list[tuple[str, int]], max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        simulation = Simulation(Path(name), max_bytes)
        for step, count in script:
            if step == "emit":
                simulation.emit(count)
            elif step == "cycle":
                simulation.cycle(count / 10)
            elif step == "ack":
                simulation.acknowledge(count)
            elif step == "lose":
                simulation.lose(count)
            elif step in ("down", "up"):
                simulation.up = step == "up"
            elif step == "remake":
                simulation.remake_topic()
            else:
                simulation.restart()
            counters = simulation.sender.counters
            assert min(counters.buffered, counters.queued, counters.in_memory) >= 0
            assert counters.memory_bytes <= max_bytes + 110 * simulation.chunk, "memory is bounded by the limit and one chunk"
        simulation.deliver_all()
        counters = simulation.sender.counters
        assert counters.emitted + counters.recovered == counters.delivered and counters.failed == 0
        for partition in range(PARTITIONS):
            arrived = list(dict.fromkeys(number for place, number in simulation.log if place == partition))
            assert arrived == sorted(arrived), "first copies are in order"
        assert sorted({number for _, number in simulation.log}) == list(range(simulation.emitted))
        simulation.outbox.close()


def test_an_fsync_that_fails_before_a_new_segment_leaves_the_lines_before_it_unstored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    disk = FailingDisk(monkeypatch)
    outbox = Outbox(tmp_path, 16, 0.0)  # each frame has a segment of its own
    buffer = SendBuffer(outbox, SendCounters(), threading.Condition(), 1000, drop_oldest=False, drop=None)
    assert buffer.add([Line(b"first", "s", 0.0)], 0)
    disk.sync_error = errno.EIO
    buffer.add([Line(b"second", "s", 0.0)], 0)
    disk.sync_error = 0
    buffer.sync()
    assert buffer.unstored_end(1) == 1, "no later fsync says anything about the lines before the failed one"
    outbox.close()
