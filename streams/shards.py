"""The shards that a worker holds: one for each partition it was assigned.

One thread opens, applies, reads and closes them, in the order asked. So a shard is closed after the batch in hand, its file lock
is free when the partition moves to another worker, and the event loop stays free for HTTP while DuckDB works.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from streams.columns import Columns
from streams.events import Decoded
from streams.progress import ApplyStats, Progress
from streams.readers import ShardReaders
from streams.store import Applied, CountingRules, Shard, ShardTotals

if TYPE_CHECKING:
    from streams.fetches import Run
    from streams.peers import Places

log = logging.getLogger(__name__)

T = TypeVar("T")

TEND_S = 0.25
"""Seconds of upkeep between two batches."""


def shard_path(data_dir: Path, partition: int) -> Path:
    """Where a partition's DuckDB file lies."""
    return data_dir / "shards" / f"events-{partition}.duckdb"


class HeldShards:
    """Opens, applies to, reads and releases shards on one thread of its own.

    `readers` reads the held shards beside that, `exports` reads them for the lake, which takes longer; `progress` and `stats`
    tell how applying goes; `places`, where given, tells other workers which shards are here.
    """

    def __init__(
        self,
        data_dir: Path,
        rules: CountingRules,
        clock: Callable[[], float] = time.time,
        places: Places | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.readers = ShardReaders()
        self.exports = ShardReaders()
        self.progress: dict[int, Progress] = {}
        self.stats = ApplyStats()
        self.new_topics = 0
        self._rules = rules
        self._clock = clock
        self._places = places
        self._topic_id = ""
        self._generation = 0
        self._shards: dict[int, Shard] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards")

    @property
    def topic_id(self) -> str:
        """The id of the log that the shards were last taken for, "" before that."""
        return self._topic_id

    async def take(self, earliest: Mapping[int, int], topic_id: str, generation: int = 0) -> dict[int, int]:
        """Open the shards of these partitions and return the offset that each wants next.

        `earliest` gives the first offset that the log still has, for each partition; `topic_id` says which log it is now. Only
        runs of this `generation` are applied from now on. Raises StoreError when a shard's file is held by another process.
        """
        return await self._call(self._take, earliest, topic_id, generation)

    async def release(self, partitions: Iterable[int]) -> None:
        """Close these shards, after what is in hand."""
        await self._call(self._release, sorted(partitions))

    async def apply(self, runs: Sequence[Run], columns: Columns) -> Applied | None:
        """Count consecutive runs of one partition, decoded, as one batch.

        None when the partition has moved away, or was sought anew, since they were fetched: then they are read again.
        """
        return await self._call(self._apply, runs, columns)

    async def tend(self) -> None:
        """Give every held shard a slice of time for its upkeep, shard by shard."""
        for partition in self.totals():
            await self.call(partition, _tend)

    async def call(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        """Call `function` with a held shard on the shards' thread; None when it is not held any more."""
        return await self._call(self._with_shard, partition, function)

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
        """Close every shard and end the thread."""
        self._thread.submit(self._release, list(self._shards)).result()
        self._thread.shutdown()
        self.readers.close()
        self.exports.close()

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _take(self, earliest: Mapping[int, int], topic_id: str, generation: int) -> dict[int, int]:
        self._topic_id = topic_id
        self._generation = generation
        self._release([partition for partition in self._shards if partition not in earliest])
        return {partition: self._open(partition, first) for partition, first in earliest.items()}

    def _open(self, partition: int, earliest: int) -> int:
        shard = self._shards.get(partition)
        if shard is None:
            shard = self._hold(partition)
        position = shard.position()
        if position is None:
            offset = earliest
        elif position[0] != self._topic_id:
            self.new_topics += 1
            log.warning("event=new_topic partition=%d topic_id=%s old_topic_id=%s", partition, self._topic_id, position[0])
            offset = earliest
        else:
            offset = self._skip_expired(shard, partition, position[1], earliest)
        log.info("event=shard_taken partition=%d offset=%d topic_id=%s", partition, offset, self._topic_id)
        return offset

    def _hold(self, partition: int) -> Shard:
        shard = self._shards[partition] = Shard.open(shard_path(self.data_dir, partition), self._rules)
        self.readers.add(partition, shard)
        self.exports.add(partition, shard)
        if self._places is not None:
            self._places.write(partition)
        return shard

    def _skip_expired(self, shard: Shard, partition: int, offset: int, earliest: int) -> int:
        """Move on to what the log still has, when its retention removed records before they were counted."""
        if offset >= earliest:
            return offset
        log.error(
            "event=records_expired partition=%d first=%d last=%d action=%r",
            partition,
            offset,
            earliest - 1,
            "raise log.retention.ms",
        )
        shard.apply(Decoded(), topic_id=self._topic_id, first_offset=offset, next_offset=earliest, now=self._clock())
        return earliest

    def _release(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            if (shard := self._shards.pop(partition, None)) is not None:
                if self._places is not None:
                    self._places.remove(partition)
                self.readers.remove(partition)
                self.exports.remove(partition)
                self.progress.pop(partition, None)
                shard.close()
                log.info("event=shard_released partition=%d", partition)

    def _apply(self, runs: Sequence[Run], columns: Columns) -> Applied | None:
        shard = self._shards.get(runs[0].partition)
        if shard is None or runs[0].generation != self._generation:
            return None
        began = time.perf_counter()
        offsets = {"first_offset": runs[0].first_offset, "next_offset": runs[-1].next_offset}
        applied = shard.apply(columns, topic_id=self._topic_id, now=self._clock(), **offsets)
        self._note(runs, len(columns), time.perf_counter() - began)
        _tend(shard)
        return applied

    def _note(self, runs: Sequence[Run], events: int, seconds: float) -> None:
        self.stats.add(events, seconds)
        records = sum(len(run.records) for run in runs)
        if records:
            stamped = max(run.timestamp_ms for run in runs if run.timestamp_ms is not None)
            before = self.progress.get(runs[0].partition, Progress())
            self.progress[runs[0].partition] = before.after(stamped, records, events)

    def _with_shard(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        shard = self._shards.get(partition)
        return None if shard is None else function(shard)


def _tend(shard: Shard) -> None:
    shard.tend(TEND_S)
