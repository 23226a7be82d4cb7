"""The agent ends with its first error; quarantine rows and group offsets are sent to Kafka once it accepts them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.exceptions import NotReady, ProducerSendError
from faust.types import TP

from streams.brokers.topics import KafkaSettings
from streams.events.columns import Columns
from streams.store.offset_range import OffsetRange
from streams.store.shard import ShardTotals
from streams.worker import app as agents
from streams.worker.app import publish_quarantine
from streams.worker.fetches import FetchedRun
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
    """Accepts a record, or fails as a broker or Faust does."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.sent: list[bytes] = []

    async def send(self, *, key: None, value: bytes) -> asyncio.Future[None]:
        if self.error is not None:
            raise self.error
        self.sent.append(value)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@pytest.mark.parametrize("error", [NotReady("producer not started"), KafkaConnectionError("gone"), ProducerSendError("no")])
def test_quarantine_rows_wait_while_they_cannot_be_sent_and_are_sent_once_they_can(error: Exception) -> None:
    shard, topic = OneShard(), QuarantineTopic(error)
    asyncio.run(publish_quarantine(topic, 0, shard, KafkaSettings()))  # type: ignore[arg-type]
    assert shard.published == []
    topic.error = None
    for _ in range(2):
        asyncio.run(publish_quarantine(topic, 0, shard, KafkaSettings()))  # type: ignore[arg-type]
    assert shard.published == [7]
    assert len(topic.sent) == 1


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
        self.applied: list[int] = []

    async def apply(self, offset_range: OffsetRange, columns: Columns) -> None:
        self.applied.append(offset_range.first_offset)
        raise OSError("disk full")


class Stream:
    """A Faust stream of two runs; the second is delivered once the first has failed."""

    def __init__(self, app: CrashingApp) -> None:
        self.app = app

    async def noack(self) -> AsyncIterator[FetchedRun]:
        yield FetchedRun(0, [(0, b"{}")], 0, 1)
        while not self.app.crashed:
            await asyncio.sleep(0.001)
        yield FetchedRun(0, [(1, b"{}")], 1, 2)


def test_an_apply_error_crashes_the_app_and_nothing_after_it_is_applied() -> None:
    async def scenario() -> None:
        app, shards = CrashingApp(), FailingShards()
        agents._count_events(app, StreamsSettings(), shards)  # type: ignore[arg-type]
        await asyncio.wait_for(app.agents["count"](Stream(app)), 20)
        assert [str(error) for error in app.crashed] == ["disk full"]
        assert shards.applied == [0]

    asyncio.run(scenario())


class OffsetCommits:
    """An app that accepts commits, or fails as a broker does, and shards of two partitions."""

    def __init__(self) -> None:
        self.committed: list[dict[TP, int]] = []
        self.error: KafkaConnectionError | None = None
        self.next_offset = 5

    async def commit_offsets(self, offsets: dict[TP, int]) -> None:
        if self.error is not None:
            raise self.error
        self.committed.append(offsets)

    def totals(self) -> dict[int, ShardTotals]:
        return {0: ShardTotals(next_offset=99, written_offset=self.next_offset), 1: ShardTotals(next_offset=7)}


def test_offsets_are_committed_when_they_changed_and_again_after_a_failure() -> None:
    both, already = OffsetCommits(), dict[TP, int]()

    def commit() -> None:
        asyncio.run(agents.commit_offsets(both, "events", both, already))  # type: ignore[arg-type]

    both.error = KafkaConnectionError("gone")
    commit()
    both.error = None
    commit()
    commit()
    both.next_offset = 9
    commit()
    assert both.committed == [{TP("events", 0): 5}, {TP("events", 0): 9}]
