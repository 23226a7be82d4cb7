"""From fetched runs to applied batches: decoding and applying side by side, in batches that grow with the lag.

An apply costs milliseconds whatever its size, and so does decoding. So runs wait as they came until the decoder, on a thread of
its own, may begin: then all that wait for one partition become one batch. Two batches are in hand at most, decoded or applied, so
that batches grow while both are busy; when nothing is in hand a run goes through at once. Decoder and shards leave the
interpreter to others most of the time, the one in Arrow's JSON reader, the others in DuckDB. What is held is bounded in bytes:
when there is no room, `put` waits, and with it the fetching.
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
from streams.store.offset_range import Stretch
from streams.worker.fetches import Run, cover

HELD_BYTES = 64 * 1024 * 1024
BATCH_BYTES = 16 * 1024 * 1024
"""Some 50,000 events: what a batch costs is under half a microsecond of each. Decoded it is several times as big."""
FULL_BYTES = 1024 * 1024
"""From this size on what waits of a partition is worth a batch at any time: some 3,000 events."""
LINGERING = 4
"""Partitions that linger as long as they are told to. What a batch costs comes again with each partition, so more of them linger
longer, and take no more of a worker's CPU: 32 of them took a whole core of 1,700 events a second."""
IN_HAND = 2
"""Batches being decoded or applied. With a third, each is made earlier than it can be applied, and so smaller and later."""

Fail = Callable[[BaseException], Awaitable[None]]


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A run that waits, its number in the order of arrival, and its bytes."""

    number: int
    run: Run
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive runs of one partition, decoded together; their values are not held any more."""

    stretch: Stretch
    size: int
    columns: Columns


class Pipeline:
    """Takes runs and applies them, in order within each partition. All of it is called in one event loop.

    A batch costs some 15 ms of CPU whatever is in it, so after one has begun its partition's next one lingers for `linger_s`
    seconds, or longer while more than LINGERING partitions do, unless FULL_BYTES wait. An error in decoding or applying is handed
    to `fail`, and nothing is applied after it.
    """

    def __init__(self, shards: HeldShards, limits: EventSettings, fail: Fail, linger_s: float = 0.0) -> None:
        self._shards = shards
        self._fail = fail
        self._waiting: dict[int, deque[Arrival]] = {}
        self._arrived = 0
        self._held = 0
        self._came = asyncio.Event()
        self._room = asyncio.Event()
        self._hands = asyncio.Semaphore(IN_HAND)
        self._turns: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_hand: Counter[int] = Counter()
        self._linger_s = linger_s
        self._lingers: set[int] = set()
        self._limits = limits
        self._decoder = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._work: asyncio.Task[None] | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the runs that are not applied yet."""
        return self._held

    @property
    def waiting_runs(self) -> int:
        """Runs that nobody has begun to decode."""
        return sum(map(len, self._waiting.values()))

    async def put(self, run: Run) -> None:
        """Take a run, once there is room for it. After a failure it is dropped."""
        if self._work is None:
            self._work = asyncio.create_task(self._run())
        size = run.size
        while self._held and self._held + size > HELD_BYTES and not self._work.done():
            self._room.clear()
            await self._room.wait()
        if not self._work.done():
            self._held += size
            self._arrived += 1
            self._waiting.setdefault(run.partition, deque()).append(Arrival(self._arrived, run, size))
            self._came.set()

    async def close(self) -> None:
        """Stop; what waits is dropped, and read again by whoever holds the partition next."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        self._decoder.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                await self._decode_all(group)
        except ExceptionGroup as errors:  # whatever it is, nothing after it may be applied
            await self._fail(errors.exceptions[0])
        finally:
            self._room.set()

    async def _decode_all(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._hands.acquire()
            group.create_task(self._apply(await self._decode(await self._take())))

    async def _take(self) -> list[Arrival]:
        """Return what becomes the next batch, once there is something."""
        while not (arrivals := self._next_arrivals()):
            self._came.clear()
            await self._came.wait()
        self._begin(arrivals[0].run.partition)
        return arrivals

    async def _decode(self, arrivals: list[Arrival]) -> Batch:
        """Decode arrivals, and empty the list: the columns hold their text, so nobody keeps the values beside it."""
        stretch, size = cover([one.run for one in arrivals]), sum(one.size for one in arrivals)
        records = [record for one in arrivals for record in one.run.records]
        arrivals.clear()
        loop = asyncio.get_running_loop()
        decoding = loop.run_in_executor(self._decoder, decode_columns, records, self._limits)
        del records
        return Batch(stretch, size, await decoding)

    def _begin(self, partition: int) -> None:
        """Note that a batch of a partition begins: the next one lingers."""
        self._in_hand[partition] += 1
        if self._linger_s and partition not in self._lingers:
            self._lingers.add(partition)
            linger_s = self._linger_s * max(1.0, len(self._lingers) / LINGERING)
            asyncio.get_running_loop().call_later(linger_s, self._end_linger, partition)

    def _end_linger(self, partition: int) -> None:
        self._lingers.discard(partition)
        self._came.set()

    async def _apply(self, batch: Batch) -> None:
        partition = batch.stretch.partition
        async with self._turns[partition]:
            await self._shards.apply(batch.stretch, batch.columns)
        self._held -= batch.size
        self._room.set()
        self._hands.release()
        await self._shards.tend(partition)
        self._in_hand[partition] -= 1
        self._came.set()

    def _next_arrivals(self) -> list[Arrival]:
        """Take what waits of a partition, up to a batch's size.

        Of those with the fewest batches in hand it is the one whose first run has waited longest. While a batch is applied, or
        its shard tended after it, the next one of its partition can only wait for that, and would keep a hand from the others:
        where no more partitions than hands are busy it is decoded meanwhile.
        """
        most = 1 if self._count_busy() > IN_HAND else 2
        chosen = [
            (self._in_hand[partition], waiting[0].number, partition)
            for partition, waiting in self._waiting.items()
            if waiting and self._in_hand[partition] < most and self._is_worth_it(partition)
        ]
        if not chosen:
            return []
        waiting = self._waiting[min(chosen)[2]]
        taken = [waiting.popleft()]
        size = taken[0].size
        while waiting and follows(taken[-1].run, waiting[0].run):
            size += waiting[0].size
            if size > BATCH_BYTES:
                break
            taken.append(waiting.popleft())
        return taken

    def _count_busy(self) -> int:
        """Return how many partitions have something that waits or is in hand, or had a moment ago."""
        moving = self._lingers | {partition for partition, waiting in self._waiting.items() if waiting}
        return len(moving | {partition for partition, batches in self._in_hand.items() if batches})

    def _is_worth_it(self, partition: int) -> bool:
        return partition not in self._lingers or sum(one.size for one in self._waiting[partition]) >= FULL_BYTES


def follows(first: Run, second: Run) -> bool:
    """Whether a run continues another one of the same partition, after the same seek."""
    return first.generation == second.generation and first.next_offset == second.first_offset
