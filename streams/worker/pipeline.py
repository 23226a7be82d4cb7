"""The pipeline from fetched runs to applied batches: it decodes and applies at the same time, in batches that grow with the lag.

An apply costs milliseconds whatever its size, and so does decoding. So fetched runs are queued until the decoder, on its own
thread, is free; then all queued runs of one partition become one batch. At most two batches are in flight (being decoded or
applied), so batches grow while both slots are busy; with no batch in flight a run is decoded at once. Decoder and shards release
the interpreter most of the time, the one in Arrow's JSON reader, the others in DuckDB. The buffered bytes are bounded: when the
buffer is full, `put` waits, and so does fetching.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from streams.events.batch_decoder import decode_columns
from streams.events.columns import Columns
from streams.events.schema import EventSettings
from streams.store.held_shards import HeldShards
from streams.store.offset_range import OffsetRange
from streams.worker.fetches import FetchedRun, to_offset_range

MAX_BUFFERED_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 16 * 1024 * 1024
"""About 50,000 events, so that a batch's fixed cost is under 0.5 us per event. Decoded it is several times as large."""
FULL_BATCH_BYTES = 1024 * 1024
"""Queued bytes of a partition, about 3,000 events, from which a batch starts without any batching delay."""
BASE_DELAY_PARTITIONS = 4
"""Busy partitions up to which the batching delay is the configured one. Every partition adds the fixed cost of its batches, so
with more of them the delay grows in proportion and the CPU they take does not: without it, 32 took a core at 1,700 events/s."""
MAX_IN_FLIGHT = 2
"""Batches being decoded or applied. With a third slot each batch is formed long before it can be applied: smaller and later."""

OnError = Callable[[BaseException], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class QueuedRun:
    """A run that waits to be decoded, with its number in order of arrival and its size in bytes."""

    number: int
    run: FetchedRun
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive runs of one partition, decoded together. `size` is in bytes of their values, which are released."""

    offset_range: OffsetRange
    size: int
    columns: Columns


class Pipeline:
    """Decodes and applies runs, in order within each partition. All its methods belong to one event loop.

    A batch costs some 15 ms of CPU whatever its size. So after a batch has started, the next one of its partition starts
    `batching_delay_s` seconds later, or later still while more than BASE_DELAY_PARTITIONS partitions are delayed, unless
    FULL_BATCH_BYTES are queued. `on_error` is called with the first error, and nothing is applied after it.
    """

    def __init__(self, shards: HeldShards, limits: EventSettings, on_error: OnError, batching_delay_s: float = 0.0) -> None:
        self._shards = shards
        self._on_error = on_error
        self._queued: dict[int, deque[QueuedRun]] = {}
        self._last_number = 0
        self._buffered = 0
        self._changed = asyncio.Event()
        self._space = asyncio.Event()
        self._slots = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._apply_locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_flight: Counter[int] = Counter()
        self._batching_delay_s = batching_delay_s
        self._delayed: set[int] = set()
        self._limits = limits
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._task: asyncio.Task[None] | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes of the runs that are not yet applied."""
        return self._buffered

    @property
    def queued_runs(self) -> int:
        """Number of runs that wait to be decoded."""
        return sum(map(len, self._queued.values()))

    async def put(self, run: FetchedRun) -> None:
        """Queue a run, once there is space in the buffer. After an error the run is dropped."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        size = run.size
        while self._buffered and self._buffered + size > MAX_BUFFERED_BYTES and not self._task.done():
            self._space.clear()
            await self._space.wait()
        if not self._task.done():
            self._buffered += size
            self._last_number += 1
            self._queued.setdefault(run.partition, deque()).append(QueuedRun(self._last_number, run, size))
            self._changed.set()

    async def close(self) -> None:
        """Stop. Queued runs are dropped, and read again by the partition's next holder."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._decoder.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await self._decode_all(group)
        except ExceptionGroup as errors:  # after any error nothing more may be applied
            await self._on_error(errors.exceptions[0])
        finally:
            self._space.set()

    async def _decode_all(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._slots.acquire()
            group.create_task(self._apply(await self._decode(await self._wait_for_runs())))

    async def _wait_for_runs(self) -> list[QueuedRun]:
        """Wait for the runs of the next batch, and return them."""
        while not (runs := self._pop_queued()):
            self._changed.clear()
            await self._changed.wait()
        self._start_batch(runs[0].run.partition)
        return runs

    async def _decode(self, runs: list[QueuedRun]) -> Batch:
        """Decode runs, and empty the list: the columns hold the text, so that the values can be released."""
        offset_range, size = to_offset_range([one.run for one in runs]), sum(one.size for one in runs)
        records = [record for one in runs for record in one.run.records]
        runs.clear()
        loop = asyncio.get_running_loop()
        decoding = loop.run_in_executor(self._decoder, decode_columns, records, self._limits)
        del records
        return Batch(offset_range, size, await decoding)

    def _start_batch(self, partition: int) -> None:
        """Note that a batch of a partition starts, and delay the next one."""
        self._in_flight[partition] += 1
        if self._batching_delay_s and partition not in self._delayed:
            self._delayed.add(partition)
            delay_s = self._batching_delay_s * max(1.0, len(self._delayed) / BASE_DELAY_PARTITIONS)
            asyncio.get_running_loop().call_later(delay_s, self._end_delay, partition)

    def _end_delay(self, partition: int) -> None:
        self._delayed.discard(partition)
        self._changed.set()

    async def _apply(self, batch: Batch) -> None:
        partition = batch.offset_range.partition
        async with self._apply_locks[partition]:
            await self._shards.apply(batch.offset_range, batch.columns)
        self._buffered -= batch.size
        self._space.set()
        self._slots.release()
        await self._shards.maintain(partition)
        self._in_flight[partition] -= 1
        self._changed.set()

    def _pop_queued(self) -> list[QueuedRun]:
        """Remove the queued runs of one partition, up to a batch's size, and return them; none when no batch is due.

        Of the partitions with the fewest batches in flight it is the one whose first run has waited longest. While a shard
        applies a batch or does maintenance, its partition's next batch can only wait, and would keep a slot from other
        partitions. So a partition gets a second slot only while no more partitions are busy than there are slots.
        """
        max_in_flight = 1 if self._count_busy_partitions() > MAX_IN_FLIGHT else 2
        due = [
            (self._in_flight[partition], queue[0].number, partition)
            for partition, queue in self._queued.items()
            if queue and self._in_flight[partition] < max_in_flight and self._is_due(partition)
        ]
        if not due:
            return []
        queue = self._queued[min(due)[2]]
        popped = [queue.popleft()]
        size = popped[0].size
        while queue and follows(popped[-1].run, queue[0].run):
            size += queue[0].size
            if size > BATCH_BYTES:
                break
            popped.append(queue.popleft())
        return popped

    def _count_busy_partitions(self) -> int:
        """Return how many partitions have queued runs or batches in flight, or are in their batching delay."""
        busy = self._delayed | {partition for partition, queue in self._queued.items() if queue}
        return len(busy | {partition for partition, batches in self._in_flight.items() if batches})

    def _is_due(self, partition: int) -> bool:
        return partition not in self._delayed or sum(one.size for one in self._queued[partition]) >= FULL_BATCH_BYTES


def follows(first: FetchedRun, second: FetchedRun) -> bool:
    """Return whether `second` continues `first`, a run of the same partition, and was fetched after the same seek."""
    return first.generation == second.generation and first.next_offset == second.first_offset
