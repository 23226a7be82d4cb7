"""Fan-out of a read over all shards: this worker reads the shards it holds and asks the other workers for theirs.

Other workers get the read in its `local` form, which they answer from their own shards alone, so it is never passed on again.
A shard without an answer is named to the caller as missing, never silently left out of a sum.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams.api.click_rates import PriorCache
from streams.api.lag import describe_lag
from streams.api.metrics import describe_histogram
from streams.api.peers import Peers
from streams.runtime.metric_families import read_process
from streams.store.held_shards import HeldShards, shard_path
from streams.store.progress import LogEnd, Progress
from streams.store.shard import ShardTotals

ReadLocal = Callable[[frozenset[int]], Awaitable[Mapping[int, Any]]]
FindEnd = Callable[[int], LogEnd | None]


class PartitionsMissing(RuntimeError):
    """No worker answered for some shards; `partitions` lists them."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self.partitions = sorted(partitions)
        super().__init__(f"no worker answers for partitions {', '.join(map(str, self.partitions))}")


@dataclass(slots=True)
class Parts:
    """The parts of one read, by partition, and the partitions without an answer."""

    found: dict[int, Any]
    missing: list[int] = field(default_factory=list)

    def values(self) -> list[Any]:
        return [part for _, part in sorted(self.found.items())]


class FanOut:
    """Reads all shards of the worker group from one worker. `find_end` returns the end of a partition's log."""

    def __init__(
        self,
        name: str,
        partitions: int,
        shards: HeldShards,
        peers: Peers,
        find_end: FindEnd,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.partitions = frozenset(range(partitions))
        self.shards = shards
        self.peers = peers
        self.clock = clock
        self.priors = PriorCache()
        self.prior_lock = asyncio.Lock()
        self._find_end = find_end

    async def gather(self, path: str, parameters: Mapping[str, Any], read: ReadLocal, partial: bool) -> Parts:
        """Return every shard's part of a read. Raises PartitionsMissing unless `partial`."""
        found = dict(await read(self.partitions))
        if others := self.partitions - found.keys():
            found |= await self.peers.ask(path, parameters, others)
        missing = sorted(self.partitions - found.keys())
        if missing and not partial:
            raise PartitionsMissing(missing)
        return Parts(found, missing)

    def lag_parts(self, partitions: frozenset[int]) -> dict[int, dict[str, Any]]:
        """Return the lag of each of these shards that is held here, by partition; see `describe_lag`."""
        totals = self.shards.totals()
        return {number: self._lag_part(number, totals[number]) for number in sorted(partitions & totals.keys())}

    def describe_file(self, partition: int) -> dict[str, Any]:
        """Return the size of a shard's file, and the memory of this process, as JSON values."""
        path = shard_path(self.shards.data_dir, partition)
        sizes = {"file_bytes": _size(path), "wal_bytes": _size(path.with_name(path.name + ".wal"))}
        return {"worker": self.name, "memory_bytes": read_memory(), **sizes}

    def describe_worker(self) -> dict[str, Any]:
        """Return this process's name, memory, build, disk, new topics, and timings of apply and write, as JSON values."""
        applies, writes = self.shards.apply_timings, self.shards.write_timings
        return {
            "name": self.name,
            "memory_bytes": read_memory(),
            "new_topics": self.shards.new_topics,
            "process": read_process(self.shards.data_dir),
            "apply_events": describe_histogram(applies.events),
            "apply_seconds": describe_histogram(applies.seconds),
            "write_events": describe_histogram(writes.events),
            "write_seconds": describe_histogram(writes.seconds),
        }

    def _lag_part(self, partition: int, totals: ShardTotals) -> dict[str, Any]:
        progress = self.shards.progress.get(partition, Progress())
        return describe_lag(totals, progress, self._find_end(partition), self.clock())


def describe_totals(partition: int, totals: ShardTotals) -> dict[str, Any]:
    """Return one shard's totals as JSON values, where events = counted + duplicates + sum of quarantined + pending + erased.

    Records before `next_offset` are applied, those before `written_offset` are also on disk.
    """
    return {
        "partition": partition,
        "topic_id": totals.topic_id,
        "next_offset": totals.next_offset,
        "written_offset": totals.written_offset,
        "latest_ts": None if totals.latest_us is None else totals.latest_us / 1_000_000,
        "events": totals.events,
        "counted": totals.counted,
        "duplicates": totals.duplicates,
        "quarantined": dict(totals.quarantined),
        "pending": totals.pending,
        "erased": totals.erased,
        "left_out": {"lists": totals.left_out.lists, "pairs": totals.left_out.pairs},
        "days_exported": [day.isoformat() for day in totals.days_exported],
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_memory() -> int:
    """Return the resident memory of this process in bytes."""
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)
