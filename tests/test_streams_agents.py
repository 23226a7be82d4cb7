"""Quarantine rows go to their topic at least once: they wait in the shard for as long as nothing can take them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.exceptions import NotReady, ProducerSendError

from streams.agents import publish_quarantine

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
