"""The agent ends with its first error; quarantine rows and group offsets go to Kafka whenever it can take them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.exceptions import NotReady, ProducerSendError
from faust.types import TP

from streams.events.columns import Columns
from streams.store.offset_range import Stretch
from streams.store.shard import ShardTotals
from streams.worker import app as agents
from streams.worker.app import publish_quarantine
from streams.worker.fetches import Run
from streams.worker.settings import StreamsSettings

ROW = {
    "id": 7,
    "event_id": "e",
    "reason": "invalid",
    "detail": "ts: missing",
    "raw": b"{}",
    "ts_us": None,
    "log_offset": 3,
    "line": 0,
}


class OneShard:
    """A shard with one unpublished quarantine row, behind the interface of `HeldShards`."""

    def __init__(self) -> None:
        self.published: list[int] = []

    async def call(self, partition: int, act: Callable[[Any], Any]) -> Any:
        return act(self)

    def unpublished(self, limit: int) -> OneShard:
        return self

    def to_pylist(self) -> list[dict[str, Any]]:
        return [] if self.published else [ROW]

    def mark_published(self, ids: list[int]) -> None:
        self.published.extend(ids)


class QuarantineTopic:
    """Takes a record, or fails as a broker or Faust does."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.taken: list[bytes] = []

    async def send(self, *, key: None, value: bytes) -> asyncio.Future[None]:
        if self.error is not None:
            raise self.error
        self.taken.append(value)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@pytest.mark.parametrize("error", [NotReady("producer not started"), KafkaConnectionError("gone"), ProducerSendError("no")])
def test_rows_wait_while_nothing_can_take_them_and_go_out_once_something_can(error: Exception) -> None:
    shard, topic = OneShard(), QuarantineTopic(error)
    asyncio.run(publish_quarantine(topic, 0, shard))  # type: ignore[arg-type]
    assert shard.published == []
    topic.error = None
    for _ in range(2):
        asyncio.run(publish_quarantine(topic, 0, shard))  # type: ignore[arg-type]
    assert shard.published == [7]
    assert len(topic.taken) == 1


class CrashingApp:
    """The part of a Faust app that the counting agent needs."""

    def __init__(self) -> None:
        self.crashed: list[BaseException] = []
        self.agents: dict[str, Callable[[Any], Awaitable[None]]] = {}

    def topic(self, name: str, **_: object) -> str:
        return name

    def agent(self, topic: str, name: str) -> Callable[[Callable[[Any], Awaitable[None]]], None]:
        return lambda function: self.agents.update({name: function})

    async def crash(self, error: BaseException) -> None:
        self.crashed.append(error)


class FailingShards:
    """Shards on a full disk."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def apply(self, stretch: Stretch, columns: Columns) -> None:
        self.asked.append(stretch.first_offset)
        raise OSError("disk full")


class Stream:
    """A Faust stream of two runs; the second comes once the first has failed."""

    def __init__(self, app: CrashingApp) -> None:
        self.app = app

    async def noack(self) -> AsyncIterator[Run]:
        yield Run(0, [(0, b"{}")], 0, 1)
        while not self.app.crashed:
            await asyncio.sleep(0.001)
        yield Run(0, [(1, b"{}")], 1, 2)


def test_an_apply_error_crashes_the_app_and_nothing_after_it_is_applied() -> None:
    async def story() -> None:
        app, shards = CrashingApp(), FailingShards()
        agents._count_events(app, StreamsSettings(), shards)  # type: ignore[arg-type]
        await asyncio.wait_for(app.agents["count"](Stream(app)), 20)
        assert [str(error) for error in app.crashed] == ["disk full"]
        assert shards.asked == [0]

    asyncio.run(story())


class Offsets:
    """An app that takes offsets for the group, or fails as a broker does; shards that hold two partitions."""

    def __init__(self) -> None:
        self.told: list[dict[TP, int]] = []
        self.error: KafkaConnectionError | None = None
        self.next_offset = 5

    async def record_offsets(self, offsets: dict[TP, int]) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(offsets)

    def totals(self) -> dict[int, ShardTotals]:
        return {0: ShardTotals(next_offset=99, written_offset=self.next_offset), 1: ShardTotals(next_offset=7)}


def test_offsets_are_recorded_where_they_moved_and_a_failure_is_tried_again() -> None:
    both, recorded = Offsets(), dict[TP, int]()

    def record() -> None:
        asyncio.run(agents.record_offsets(both, "events", both, recorded))  # type: ignore[arg-type]

    both.error = KafkaConnectionError("gone")
    record()
    both.error = None
    record()
    record()
    both.next_offset = 9
    record()
    assert both.told == [{TP("events", 0): 5}, {TP("events", 0): 9}]
