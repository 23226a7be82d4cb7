"""The shards that a worker holds: one for each partition it was assigned.

One thread opens, applies, reads and closes them, in the order asked. So a shard is closed after the batch in hand, its file lock
is free when the partition moves to another worker, and the event loop stays free for HTTP while DuckDB works.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from streams.decoder import decode_records
from streams.events import Decoded, EventSettings
from streams.lake import LakeSettings, export_mature
from streams.progress import ApplyStats, Progress
from streams.readers import ShardReaders
from streams.store import Applied, CountingRules, Shard, ShardTotals

if TYPE_CHECKING:
    from streams.peers import Places
    from streams.transport import Run

log = logging.getLogger(__name__)

T = TypeVar("T")


def shard_path(data_dir: Path, partition: int) -> Path:
    """Where a partition's DuckDB file lies."""
    return data_dir / "shards" / f"events-{partition}.duckdb"


class HeldShards:
    """Opens, applies to, reads and releases shards on one thread of its own.

    `readers` reads the held shards beside that, `progress` and `stats` tell how applying goes; `places`, where given, tells other
    workers which shards are here.
    """

    def __init__(
        self,
        data_dir: Path,
        rules: CountingRules,
        limits: EventSettings,
        clock: Callable[[], float] = time.time,
        places: Places | None = None,
    ) -> None:
        self.data_dir = data_dir
        self.readers = ShardReaders()
        self.progress: dict[int, Progress] = {}
        self.stats = ApplyStats()
        self.new_topics = 0
        self._rules = rules
        self._limits = limits
        self._clock = clock
        self._places = places
        self._topic_id = ""
        self._shards: dict[int, Shard] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="shards")

    async def take(self, earliest: Mapping[int, int], topic_id: str) -> dict[int, int]:
        """Open the shards of these partitions and return the offset that each wants next.

        `earliest` gives the first offset that the log still has, for each partition; `topic_id` says which log it is now. Raises
        StoreError when a shard's file is held by another process.
        """
        return await self._call(self._take, earliest, topic_id)

    async def release(self, partitions: Iterable[int]) -> None:
        """Close these shards, after what is in hand."""
        await self._call(self._release, sorted(partitions))

    async def apply(self, run: Run) -> Applied | None:
        """Count a run; None when the partition has moved away meanwhile (its next holder reads the run again)."""
        return await self._call(self._apply, run)

    async def call(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        """Call `function` with a held shard on the shards' thread; None when it is not held any more."""
        return await self._call(self._with_shard, partition, function)

    async def export_mature(self, settings: LakeSettings) -> None:
        """Write the mature days of every held shard to the lake, shard by shard."""
        for partition in self.totals():
            export = partial(export_mature, partition=partition, lake_dir=self.data_dir / "lake", settings=settings)
            for day in await self.call(partition, export) or []:
                log.info("event=day_exported partition=%d day=%s", partition, day)

    def totals(self) -> dict[int, ShardTotals]:
        """The account of every held shard, by partition. Safe from any thread: totals are replaced whole."""
        return {partition: shard.totals() for partition, shard in sorted(self._shards.copy().items())}

    def close(self) -> None:
        """Close every shard and end the thread."""
        self._thread.submit(self._release, list(self._shards)).result()
        self._thread.shutdown()
        self.readers.close()

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _take(self, earliest: Mapping[int, int], topic_id: str) -> dict[int, int]:
        self._topic_id = topic_id
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
                self.progress.pop(partition, None)
                shard.close()
                log.info("event=shard_released partition=%d", partition)

    def _apply(self, run: Run) -> Applied | None:
        shard = self._shards.get(run.partition)
        if shard is None:
            return None
        began = time.perf_counter()
        decoded = decode_records(run.values(), self._limits)
        offsets = {"first_offset": run.first_offset, "next_offset": run.next_offset}
        applied = shard.apply(decoded, topic_id=self._topic_id, now=self._clock(), **offsets)
        self.stats.add(len(decoded), time.perf_counter() - began)
        before = self.progress.get(run.partition, Progress())
        self.progress[run.partition] = before.after(run.timestamp_ms, len(run.records), len(decoded))
        return applied

    def _with_shard(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        shard = self._shards.get(partition)
        return None if shard is None else function(shard)
