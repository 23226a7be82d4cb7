"""The shards that a worker holds: one for each partition that Kafka assigned to it.

Each shard has a thread that opens, applies, maintains and closes it, in the order of the calls. So a shard is closed only after
its current batch, its file lock is free when the partition moves to another worker, no shard waits for another one's maintenance,
and the event loop stays free for HTTP while DuckDB works.
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

from streams.counting.erasure import Erased
from streams.events.batch_decoder import NO_EVENTS
from streams.events.columns import Columns
from streams.events.erasures import Subject, read_tombstones
from streams.store.offset_range import OffsetRange
from streams.store.progress import Progress, Timings
from streams.store.readers import ShardReaders
from streams.store.shard import Applied, CountingRules, Shard, ShardInUse, ShardTotals
from streams.store.shard_registry import ShardRegistry
from streams.store.throttle import Throttle

log = logging.getLogger(__name__)

T = TypeVar("T")

MAINTENANCE_S = 0.02
"""Seconds of maintenance between two batches; one slice may exceed it."""
WRITE_EVENTS = 20_000
WRITE_EVERY_S = 1.0
"""Applied events are written once there are so many or they are so old, since a transaction costs as much as thousands of events.
A crash loses nothing: the offsets are written with the counts, so the worker reads a little more of the log again."""
EXPORT_NICE = 10
"""Exporting a day takes seconds of CPU per million events, at a priority below that of counting."""


def shard_path(data_dir: Path, partition: int) -> Path:
    """Return the path of a partition's DuckDB file."""
    return data_dir / "shards" / f"events-{partition}.duckdb"


class LogIdentity(NamedTuple):
    """Which log the shards count: the topic's id, and the number of the last seek."""

    topic_id: str = ""
    generation: int = 0


class HeldShards:
    """Opens, applies, maintains and releases shards, each on its thread.

    `readers` reads the held shards for HTTP, `export_readers` for the lake, which takes longer. `progress`, `apply_timings` and
    `write_timings` are figures for monitoring. The held shards are listed in `registry`, if given, for other workers to find.
    `clock` (seconds since the epoch) decides which events are in the future, `timer` (seconds) when to write.
    """

    def __init__(
        self,
        data_dir: Path,
        rules: CountingRules,
        clock: Callable[[], float] = time.time,
        registry: ShardRegistry | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self.data_dir = data_dir
        self.readers = ShardReaders(self.write)
        self.export_readers = ShardReaders(self.write, nice=EXPORT_NICE, threads=1)
        self.progress: dict[int, Progress] = {}
        self.apply_timings = Timings()
        self.write_timings = Timings()
        self.new_topics = 0
        self.waiting: dict[int, str] = {}
        """The assigned shards whose file another process has open, and what DuckDB says about that process."""
        self._rules = rules
        self._clock = clock
        self._registry = registry
        self._timer = timer
        self._log_identity = LogIdentity()
        self._shards: dict[int, Shard] = {}
        self._threads: dict[int, ThreadPoolExecutor] = {}
        self._unwritten_since: dict[int, float] = {}
        self._figures_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._throttle = Throttle()

    @property
    def rules(self) -> CountingRules:
        """The rules by which the shards count."""
        return self._rules

    @property
    def topic_id(self) -> str:
        """The id of the topic that the shards were last assigned for, "" before the first assignment."""
        return self._log_identity.topic_id

    async def assign(self, earliest: Mapping[int, int], topic_id: str, generation: int = 0) -> dict[int, int]:
        """Hold exactly the shards of these partitions; return the offset at which to read the log of each one that is held.

        `earliest` is the first offset that the log still has, by partition; `topic_id` identifies the log. From now on only
        offset ranges of this `generation` are applied. A shard whose file another process has open is not held but `waiting`.
        """
        self._log_identity = LogIdentity(topic_id, generation)
        await self.release([partition for partition in self._shards if partition not in earliest])
        self.waiting = {partition: why for partition, why in self.waiting.items() if partition in earliest}
        offsets = await self._call_each(earliest, lambda partition: self._assign(partition, earliest[partition]))
        return {partition: offset for partition, offset in offsets.items() if offset is not None}

    async def open_waiting(self) -> bool:
        """Try to open the waiting shards; return whether one was opened, whose offset `assign` tells."""
        opened = await self._call_each(list(self.waiting), lambda partition: self._open_shard(partition) is not None)
        return any(opened.values())

    async def release(self, partitions: Iterable[int]) -> None:
        """Close these shards, each after what its thread still has to do."""
        await self._call_each(sorted(partitions), self._release)

    async def apply(self, offset_range: OffsetRange, columns: Columns) -> Applied | None:
        """Count the decoded events of an offset range as one batch; call `maintain` afterwards.

        None when the shard was released, or its partition sought again, since they were fetched: then they are read again.
        """
        return await self._call(offset_range.partition, self._apply, offset_range, columns)

    async def maintain(self, partition: int) -> None:
        """Write what a shard has applied, if that is due, and do some of its maintenance. Call it after each batch and regularly.

        All shards of the worker share a limit on maintenance that is not urgent.
        """
        await self.call(partition, partial(self._maintain, partition))

    async def write(self, partition: int) -> None:
        """Write all that a shard has applied, so that every later read of its file sees it."""
        shard = self._shards.get(partition)
        if shard is not None and shard.is_unwritten:
            await self.call(partition, self._write)

    async def call(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        """Return what `function` returns for a held shard, called on its thread; None when the shard is not held."""
        return await self._call(partition, self._with_shard, partition, function)

    async def erase(self, partition: int, subject: Subject, dry_run: bool = False) -> Erased | None:
        """Erase a session or a user, whose tombstone is written, from a shard; return what was there, None if it is not held.

        Afterwards no export that began before is still being written.
        """
        tombstones = await asyncio.to_thread(read_tombstones, self.data_dir)

        def erase(shard: Shard) -> Erased:
            shard.tombstones = tombstones
            return shard.erase(subject, dry_run)

        erased = await self.call(partition, erase)
        await self.export_readers.read([partition], lambda _: None)
        return erased

    def maintenance_totals(self, partition: int) -> dict[str, dict[str, float]]:
        """Return the maintenance of a held shard since it was opened, by kind. Safe from any thread."""
        shard = self._shards.get(partition)
        totals = {} if shard is None else shard.maintenance_totals()
        return {kind: {"slices": one.slices, "seconds": one.seconds, "longest_s": one.longest_s} for kind, one in totals.items()}

    def totals(self) -> dict[int, ShardTotals]:
        """Return the totals of every held shard, by partition. Safe from any thread: totals are replaced whole."""
        return {partition: shard.totals() for partition, shard in sorted(self._shards.copy().items())}

    def close(self) -> None:
        """Close every shard and end all threads."""
        for partition, thread in self._threads.items():
            thread.submit(self._release, partition).result()
            thread.shutdown()
        self.readers.close()
        self.export_readers.close()

    async def _call(self, partition: int, function: Callable[..., T], *args: object) -> T:
        if (thread := self._threads.get(partition)) is None:
            thread = self._threads[partition] = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"shard-{partition}")
        return await asyncio.get_running_loop().run_in_executor(thread, function, *args)

    async def _call_each(self, partitions: Iterable[int], function: Callable[[int], T]) -> dict[int, T]:
        """Call `function` for each partition on its shard's thread; raise the first error once all have ended."""
        wanted = list(partitions)
        done = await asyncio.gather(*(self._call(one, function, one) for one in wanted), return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        return dict(zip(wanted, cast("list[T]", done), strict=True))

    def _assign(self, partition: int, earliest: int) -> int | None:
        shard = self._shards.get(partition) or self._open_shard(partition)
        if shard is None:
            return None
        position, topic_id = shard.position(), self._log_identity.topic_id
        if position is None:
            offset = earliest
        elif position[0] != topic_id:
            with self._figures_lock:
                self.new_topics += 1
            log.warning("event=new_topic partition=%d topic_id=%s old_topic_id=%s", partition, topic_id, position[0])
            offset = earliest
        else:
            offset = self._skip_expired(shard, partition, position, earliest)
        log.info("event=shard_taken partition=%d offset=%d topic_id=%s", partition, offset, topic_id)
        return offset

    def _open_shard(self, partition: int) -> Shard | None:
        """Open a shard and list it as held; without the file's lock list it as waiting and return None."""
        tombstones = read_tombstones(self.data_dir)
        try:
            shard = Shard.open(shard_path(self.data_dir, partition), self._rules)
        except ShardInUse as error:
            if partition not in self.waiting:
                said = "its events wait in Kafka: end the process that has the file open; analysts read over HTTP or the lake"
                log.error("event=shard_waits partition=%d error=%r action=%r", partition, str(error), said)
            self.waiting[partition] = str(error)
            return None
        shard.tombstones = tombstones
        self._shards[partition] = shard
        self.waiting.pop(partition, None)
        self.readers.add(partition, shard)
        self.export_readers.add(partition, shard)
        if self._registry is not None:
            self._registry.add(partition)
        return shard

    def _skip_expired(self, shard: Shard, partition: int, position: tuple[str, int], earliest: int) -> int:
        """Return the next offset, moved on to `earliest` when Kafka's retention deleted records before they were counted."""
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
        shard.apply(NO_EVENTS, topic_id=topic_id, first_offset=offset, next_offset=earliest, now=self._clock())
        return earliest

    def _release(self, partition: int) -> None:
        self.waiting.pop(partition, None)
        if (shard := self._shards.pop(partition, None)) is not None:
            if self._registry is not None:
                self._registry.remove(partition)
            self.readers.remove(partition)
            self.export_readers.remove(partition)
            self.progress.pop(partition, None)
            self._unwritten_since.pop(partition, None)
            shard.close()
            log.info("event=shard_released partition=%d", partition)

    def _apply(self, offset_range: OffsetRange, columns: Columns) -> Applied | None:
        shard, log_identity = self._shards.get(offset_range.partition), self._log_identity
        if shard is None or offset_range.generation != log_identity.generation:
            return None
        began = time.perf_counter()
        applied = shard.apply(
            columns,
            topic_id=log_identity.topic_id,
            first_offset=offset_range.first_offset,
            next_offset=offset_range.next_offset,
            now=self._clock(),
            write=False,
            record_times=offset_range.record_times,
        )
        self._record_progress(offset_range, len(columns), time.perf_counter() - began)
        return applied

    def _record_progress(self, offset_range: OffsetRange, events: int, seconds: float) -> None:
        with self._figures_lock:
            self.apply_timings.add(events, seconds)
        if offset_range.records and offset_range.timestamp_ms is not None:
            before = self.progress.get(offset_range.partition, Progress())
            self.progress[offset_range.partition] = before.after(offset_range.timestamp_ms, offset_range.records, events)

    def _with_shard(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        shard = self._shards.get(partition)
        return None if shard is None else function(shard)

    def _maintain(self, partition: int, shard: Shard) -> None:
        self._write_if_due(partition, shard)
        with self._throttle.turn() as is_free:
            shard.maintain(MAINTENANCE_S, urgent_only=not is_free)

    def _write(self, shard: Shard) -> None:
        if not shard.is_unwritten:
            return  # another read has written it meanwhile
        events, began = shard.unwritten_events, time.perf_counter()
        shard.write()
        with self._figures_lock:
            self.write_timings.add(events, time.perf_counter() - began)

    def _write_if_due(self, partition: int, shard: Shard) -> None:
        now = self._timer()  # not the clock, which a test may stop
        age_s = now - self._unwritten_since.setdefault(partition, now)
        due = max(shard.unwritten_events / WRITE_EVENTS, age_s / WRITE_EVERY_S)
        # One shard writes at a time, unless it is overdue by twice: shards that are equally busy are due at the same moment.
        if shard.is_unwritten and due >= 1.0 and self._write_lock.acquire(blocking=due >= 2.0):
            try:
                self._write(shard)
            finally:
                self._write_lock.release()
        if not shard.is_unwritten:
            self._unwritten_since.pop(partition, None)  # a read may have written it
