"""The shards that a worker holds: one for each partition it was assigned.

Each has a thread of its own that opens it, applies to it, tends it and closes it, in the order asked. So a shard is closed after
the batch in hand, its file lock is free when the partition moves to another worker, none waits for another one's upkeep, and the
event loop stays free for HTTP while DuckDB works.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from streams.events.columns import Columns
from streams.events.schema import Decoded
from streams.store.maintenance import Pace
from streams.store.offset_range import Stretch
from streams.store.progress import Progress, Timings
from streams.store.readers import ShardReaders
from streams.store.shard import Applied, CountingRules, Shard, ShardTotals
from streams.store.shard_registry import Places

log = logging.getLogger(__name__)

T = TypeVar("T")

TEND_S = 0.02
"""Seconds of upkeep between two batches, or one slice."""
WRITE_EVENTS = 20_000
WRITE_EVERY_S = 1.0
"""What was applied is written once it is so many events or so old: a transaction costs as much as thousands of events. A crash
loses nothing by it, as the offsets are written with the counts: a little more of the log is read again."""
EXPORT_NICE = 10
"""A day's export takes seconds of CPU for each million events: of what counting leaves."""


def shard_path(data_dir: Path, partition: int) -> Path:
    """Where a partition's DuckDB file lies."""
    return data_dir / "shards" / f"events-{partition}.duckdb"


class Log(NamedTuple):
    """The log that the shards count: the topic's id, and how often it was sought."""

    topic_id: str = ""
    generation: int = 0


class HeldShards:
    """Opens, applies to, tends and releases shards, each on its thread.

    `readers` reads the held shards beside that, `exports` reads them for the lake, which takes longer; `progress`, `applies` and
    `writes` tell how counting goes; `places`, where given, tells other workers which shards are here. `clock` tells what is in
    the future, `timer` (seconds) when to write.
    """

    def __init__(
        self,
        data_dir: Path,
        rules: CountingRules,
        clock: Callable[[], float] = time.time,
        places: Places | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.data_dir = data_dir
        self.readers = ShardReaders(self.write)
        self.exports = ShardReaders(self.write, nice=EXPORT_NICE, threads=1)
        self.progress: dict[int, Progress] = {}
        self.applies = Timings()
        self.writes = Timings()
        self.new_topics = 0
        self._rules = rules
        self._clock = clock
        self._places = places
        self._timer = timer
        self._log = Log()
        self._shards: dict[int, Shard] = {}
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._unwritten_since: dict[int, float] = {}
        self._noting = threading.Lock()
        self._writing = threading.Lock()
        self._pace = Pace()

    @property
    def topic_id(self) -> str:
        """The id of the log that the shards were last taken for, "" before that."""
        return self._log.topic_id

    async def take(self, earliest: Mapping[int, int], topic_id: str, generation: int = 0) -> dict[int, int]:
        """Open the shards of these partitions and return the offset that each wants next.

        `earliest` gives the first offset that the log still has, for each partition; `topic_id` says which log it is now. Only
        runs of this `generation` are applied from now on. Raises StoreError when a shard's file is held by another process.
        """
        self._log = Log(topic_id, generation)
        await self.release([partition for partition in self._shards if partition not in earliest])
        return await self._each(earliest, lambda partition: self._open(partition, earliest[partition]))

    async def release(self, partitions: Iterable[int]) -> None:
        """Close these shards, after what is in hand."""
        await self._each(sorted(partitions), self._release)

    async def apply(self, stretch: Stretch, columns: Columns) -> Applied | None:
        """Count a stretch of one partition, decoded, as one batch; `tend` is to follow.

        None when the partition has moved away, or was sought anew, since they were fetched: then they are read again.
        """
        return await self._call(stretch.partition, self._apply, stretch, columns)

    async def tend(self, partition: int) -> None:
        """Write what a shard has applied, where it is time, and give it some for its upkeep: after each batch, and now and then.

        What can wait is done at the worker's pace.
        """
        await self.call(partition, partial(self._tend, partition))

    async def write(self, partition: int) -> None:
        """Write all that a shard has applied, so that whoever reads its file from now on sees it."""
        shard = self._shards.get(partition)
        if shard is not None and shard.is_unwritten:
            await self.call(partition, self._write)

    async def call(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        """Call `function` with a held shard on its thread; None when it is not held any more."""
        return await self._call(partition, self._with_shard, partition, function)

    def upkeep(self, partition: int) -> dict[str, dict[str, float]]:
        """What upkeep has done to a held shard since it was taken, by kind. Safe from any thread."""
        shard = self._shards.get(partition)
        accounts = {} if shard is None else shard.upkeep()
        return {
            kind: {"slices": one.slices, "seconds": one.seconds, "longest_s": one.longest_s} for kind, one in accounts.items()
        }

    def totals(self) -> dict[int, ShardTotals]:
        """The account of every held shard, by partition. Safe from any thread: totals are replaced whole."""
        return {partition: shard.totals() for partition, shard in sorted(self._shards.copy().items())}

    def close(self) -> None:
        """Close every shard and end the threads."""
        for partition, thread in self._threads.items():
            thread.submit(self._release, partition).result()
            thread.shutdown()
        self.readers.close()
        self.exports.close()

    async def _call(self, partition: int, function: Callable[..., T], *args: object) -> T:
        if (thread := self._threads.get(partition)) is None:
            thread = self._threads[partition] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"shard-{partition}")
        return await asyncio.get_running_loop().run_in_executor(thread, function, *args)

    async def _each(self, partitions: Iterable[int], function: Callable[[int], T]) -> dict[int, T]:
        """Call `function` for each partition on its shard's thread; after all of them, raise the first error among theirs."""
        wanted = list(partitions)
        done = await asyncio.gather(*(self._call(one, function, one) for one in wanted), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        return dict(zip(wanted, cast("list[T]", done), strict=True))

    def _open(self, partition: int, earliest: int) -> int:
        shard = self._shards.get(partition)
        if shard is None:
            shard = self._hold(partition)
        position, topic_id = shard.position(), self._log.topic_id
        if position is None:
            offset = earliest
        elif position[0] != topic_id:
            with self._noting:
                self.new_topics += 1
            log.warning("event=new_topic partition=%d topic_id=%s old_topic_id=%s", partition, topic_id, position[0])
            offset = earliest
        else:
            offset = self._skip_expired(shard, partition, position, earliest)
        log.info("event=shard_taken partition=%d offset=%d topic_id=%s", partition, offset, topic_id)
        return offset

    def _hold(self, partition: int) -> Shard:
        shard = self._shards[partition] = Shard.open(shard_path(self.data_dir, partition), self._rules)
        self.readers.add(partition, shard)
        self.exports.add(partition, shard)
        if self._places is not None:
            self._places.write(partition)
        return shard

    def _skip_expired(self, shard: Shard, partition: int, position: tuple[str, int], earliest: int) -> int:
        """Move on to what the log still has, when its retention removed records before they were counted."""
        topic_id, offset = position
        if offset >= earliest:
            return offset
        log.error(
            "event=records_expired partition=%d first=%d last=%d action=%r",
            partition,
            offset,
            earliest - 1,
            "raise log.retention.ms",
        )
        shard.apply(Decoded(), topic_id=topic_id, first_offset=offset, next_offset=earliest, now=self._clock())
        return earliest

    def _release(self, partition: int) -> None:
        if (shard := self._shards.pop(partition, None)) is not None:
            if self._places is not None:
                self._places.remove(partition)
            self.readers.remove(partition)
            self.exports.remove(partition)
            self.progress.pop(partition, None)
            self._unwritten_since.pop(partition, None)
            shard.close()
            log.info("event=shard_released partition=%d", partition)

    def _apply(self, stretch: Stretch, columns: Columns) -> Applied | None:
        shard, of = self._shards.get(stretch.partition), self._log
        if shard is None or stretch.generation != of.generation:
            return None
        began = time.perf_counter()
        offsets = {"first_offset": stretch.first_offset, "next_offset": stretch.next_offset}
        applied = shard.apply(columns, topic_id=of.topic_id, now=self._clock(), write=False, **offsets)
        self._note(stretch, len(columns), time.perf_counter() - began)
        return applied

    def _note(self, stretch: Stretch, events: int, seconds: float) -> None:
        with self._noting:
            self.applies.add(events, seconds)
        if stretch.records and stretch.timestamp_ms is not None:
            before = self.progress.get(stretch.partition, Progress())
            self.progress[stretch.partition] = before.after(stretch.timestamp_ms, stretch.records, events)

    def _with_shard(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        shard = self._shards.get(partition)
        return None if shard is None else function(shard)

    def _tend(self, partition: int, shard: Shard) -> None:
        self._write_in_time(partition, shard)
        with self._pace.turn() as is_free:
            shard.tend(TEND_S, urgent_only=not is_free)

    def _write(self, shard: Shard) -> None:
        if not shard.is_unwritten:
            return  # another read had it written meanwhile
        events, began = shard.unwritten_events, time.perf_counter()
        shard.write()
        with self._noting:
            self.writes.add(events, time.perf_counter() - began)

    def _write_in_time(self, partition: int, shard: Shard) -> None:
        now = self._timer()  # the clock may be one that stands still
        waits_s = now - self._unwritten_since.setdefault(partition, now)
        due = max(shard.unwritten_events / WRITE_EVENTS, waits_s / WRITE_EVERY_S)
        # One at a time, unless it has waited twice as long: shards that are equally busy are due in the same moment.
        if shard.is_unwritten and due >= 1.0 and self._writing.acquire(blocking=due >= 2.0):
            try:
                self._write(shard)
            finally:
                self._writing.release()
        if not shard.is_unwritten:
            self._unwritten_since.pop(partition, None)  # a read may have done so
