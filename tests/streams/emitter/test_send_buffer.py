"""The shelf under the courier, against a scripted broker: nothing is lost or overtaken, whatever fails in whatever order."""

from __future__ import annotations

import tempfile
import threading
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
from hypothesis import example, given, settings
from kafka.errors import KafkaError, KafkaTimeoutError

from streams.emitter.delivery import DEFAULT_WIRE
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line
from streams.emitter.sender import Courier, Pace
from tests.streams.emitter.test_delivery import Promise

PARTITIONS = 2


class World:
    """A broker with one topic, and a product process that may be killed. Time stands still unless the test moves it."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.pace = Pace(3, 0.0, 30.0, max_bytes, 1.0, drop_oldest=True)
        self.now = 0.0
        self.emitted = 0
        self.piece = 0  # lines taken at once, at most
        self.log: list[tuple[int, int]] = []  # (partition, number) in the order of arrival
        self.topic_id = uuid.uuid4()
        self.up = True
        self.sent: list[tuple[int, list[int], Promise]] = []
        self.start()

    def start(self) -> None:
        self.outbox = Outbox(self.folder, 10_000_000, 1e9)
        changed = threading.Condition()
        self.courier = Courier("b:1", "t", self.pace, self.outbox, changed, lambda: self.now, self.connect, DEFAULT_WIRE, None)
        delivery: Any = self.courier._delivery
        delivery._dialler = SimpleNamespace(poll=delivery._dial, close=lambda: None)  # at once, on this thread

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
            self.courier.queue.append(Line(line, f"s{self.emitted % 5}", self.now))
            tally = self.courier.tally
            tally.emitted, tally.queued, tally.queued_bytes = tally.emitted + 1, tally.queued + 1, tally.queued_bytes + len(line)
            self.emitted += 1

    def cycle(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.piece = max(self.piece, len(self.courier.queue))
        self.courier._news = True  # never wait
        self.courier._cycle()
        if self.outbox.next > self.courier._shelf.place:
            self.courier._news = True

    def acknowledge(self, count: int) -> None:
        for partition, numbers, promise in self.sent[:count]:
            self.log += [(partition, number) for number in numbers]
            promise.succeed(len(self.log))
        del self.sent[:count]

    def lose(self, arrived: int) -> None:
        """Fail everything on its way, of which the first `arrived` records had arrived unacknowledged."""
        left, self.sent = self.sent, []
        self.log += [(partition, number) for partition, numbers, _ in left[:arrived] for number in numbers]
        for _, _, promise in left:
            promise.fail(KafkaError("connection lost"))

    def remake_topic(self) -> None:
        self.lose(0)
        self.log.clear()
        self.topic_id = uuid.uuid4()

    def restart(self) -> None:
        """Kill -9: nothing is said or written. Everything emitted was on disk."""
        while self.courier.queue:
            self.cycle()
        self.sent.clear()
        self.outbox.close()
        self.start()

    def settle(self) -> None:
        self.up = True
        for _ in range(200):
            self.cycle(0.6)
            self.acknowledge(len(self.sent))
            if self.courier.tally.buffered == 0 and not self.courier.tally.again and not self.sent:
                return
        raise AssertionError(f"not delivered: {self.courier.tally}")


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
def test_everything_arrives_and_nothing_is_overtaken(script: list[tuple[str, int]], max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        world = World(Path(name), max_bytes)
        for step, count in script:
            if step == "emit":
                world.emit(count)
            elif step == "cycle":
                world.cycle(count / 10)
            elif step == "ack":
                world.acknowledge(count)
            elif step == "lose":
                world.lose(count)
            elif step in ("down", "up"):
                world.up = step == "up"
            elif step == "remake":
                world.remake_topic()
            else:
                world.restart()
            tally = world.courier.tally
            assert min(tally.buffered, tally.queued, tally.held) >= 0
            assert tally.held_bytes <= max_bytes + 110 * world.piece, "memory is bounded, by a piece more than it should hold"
        world.settle()
        tally = world.courier.tally
        assert tally.emitted + tally.recovered == tally.delivered and tally.failed == 0
        for partition in range(PARTITIONS):
            arrived = list(dict.fromkeys(number for place, number in world.log if place == partition))
            assert arrived == sorted(arrived), "first copies stand in order"
        assert sorted({number for _, number in world.log}) == list(range(world.emitted))
        world.outbox.close()
