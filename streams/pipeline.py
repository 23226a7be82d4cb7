"""From fetched runs to applied batches: decoding and applying side by side, in batches that grow with the lag.

An apply costs tens of milliseconds whatever its size. So while the shards' thread is busy the runs that arrive are decoded on a
thread of their own and wait; then all that wait for one partition become one batch. When it is idle a run is applied as soon as
it is decoded. What is in hand is bounded in bytes: when there is no room, `put` waits, and with it the fetching.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streams.columns import Columns
from streams.decoding import decode_columns
from streams.events import EventSettings
from streams.fetches import Run
from streams.shards import HeldShards

HELD_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 24 * 1024 * 1024

Fail = Callable[[BaseException], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A run that waits, its number in the order of arrival, its bytes, and the columns that it is becoming."""

    number: int
    run: Run
    size: int
    columns: asyncio.Future[Columns]


class Pipeline:
    """Takes runs and applies them, in order within each partition. All of it is called in one event loop.

    An error in decoding or applying is handed to `fail`, and nothing is applied after it.
    """

    def __init__(self, shards: HeldShards, limits: EventSettings, fail: Fail) -> None:
        self._shards = shards
        self._limits = limits
        self._fail = fail
        self._waiting: dict[int, deque[Arrival]] = {}
        self._arrived = 0
        self._held = 0
        self._decoded = asyncio.Event()
        self._room = asyncio.Event()
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._task: asyncio.Task[None] | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the runs that are not applied yet."""
        return self._held

    async def put(self, run: Run) -> None:
        """Take a run, once there is room for it. After a failure it is dropped."""
        if self._task is None:
            self._task = asyncio.create_task(self._apply_all())
        size = run.size
        while self._held and self._held + size > HELD_BYTES and not self._task.done():
            self._room.clear()
            await self._room.wait()
        if not self._task.done():
            self._add(run, size)

    async def close(self) -> None:
        """Stop; what waits is dropped, and read again by whoever holds the partition next."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._decoder.shutdown(cancel_futures=True)

    def _add(self, run: Run, size: int) -> None:
        self._held += size
        self._arrived += 1
        columns = asyncio.get_running_loop().run_in_executor(self._decoder, decode_columns, run.records, self._limits)
        columns.add_done_callback(lambda _: self._decoded.set())
        self._waiting.setdefault(run.partition, deque()).append(Arrival(self._arrived, run, size, columns))

    async def _apply_all(self) -> None:
        try:
            while True:
                if batch := self._next_batch():
                    await self._shards.apply([one.run for one in batch], [one.columns.result() for one in batch])
                    self._held -= sum(one.size for one in batch)
                    self._room.set()
                else:
                    self._decoded.clear()
                    await self._decoded.wait()
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing after it may be applied
            await self._fail(error)
        finally:
            self._room.set()

    def _next_batch(self) -> list[Arrival]:
        """Take what is decoded of the partition whose first run has waited longest, up to a batch's size."""
        heads = [waiting for waiting in self._waiting.values() if waiting and waiting[0].columns.done()]
        if not heads:
            return []
        waiting = min(heads, key=lambda one: one[0].number)
        batch = [waiting.popleft()]
        size = batch[0].size
        while waiting and waiting[0].columns.done() and follows(batch[-1].run, waiting[0].run):
            size += waiting[0].size
            if size > BATCH_BYTES:
                break
            batch.append(waiting.popleft())
        return batch


def follows(first: Run, second: Run) -> bool:
    """Whether a run continues another one of the same partition, after the same seek."""
    return first.generation == second.generation and first.next_offset == second.first_offset
