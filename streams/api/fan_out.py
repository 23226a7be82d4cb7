"""Live reads over all shards: this worker's own parts, and those of the shards that other workers hold.

A read is asked of a peer in its `local` form, which a peer answers from its own shards alone, so no question travels twice. Where
a shard's part is missing the caller learns which, and gets no sum that silently leaves it out.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streams.api.click_rates import Priors
from streams.api.metrics import describe_histogram
from streams.api.peers import Peers
from streams.store.held_shards import HeldShards, shard_path
from streams.store.progress import Progress
from streams.store.shard import ShardTotals

LocalParts = Callable[[frozenset[int]], Awaitable[Mapping[int, Any]]]
FindEnd = Callable[[int], int | None]


class PartitionsMissing(RuntimeError):
    """Shards that no worker answered for; `partitions` names them."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self.partitions = sorted(partitions)
        super().__init__(f"no worker answers for partitions {', '.join(map(str, self.partitions))}")


@dataclass(slots=True)
class Parts:
    """The parts of one read, by partition, and the partitions that are missing."""

    found: dict[int, Any]
    missing: list[int] = field(default_factory=list)

    def values(self) -> list[Any]:
        return [part for _, part in sorted(self.found.items())]


class LiveReads:
    """What one worker can tell of all shards of its group."""

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
        self.all = frozenset(range(partitions))
        self.shards = shards
        self.peers = peers
        self.clock = clock
        self.priors = Priors()
        self.prior_lock = asyncio.Lock()
        self._find_end = find_end

    async def gather(self, path: str, parameters: Mapping[str, Any], read: LocalParts, partial: bool) -> Parts:
        """Return every shard's part of a read. Raises PartitionsMissing unless `partial`."""
        found = dict(await read(self.all))
        if others := self.all - found.keys():
            found |= await self.peers.ask(path, parameters, others)
        missing = sorted(self.all - found.keys())
        if missing and not partial:
            raise PartitionsMissing(missing)
        return Parts(found, missing)

    def lag_parts(self, partitions: frozenset[int]) -> dict[int, dict[str, Any]]:
        """How far each held shard is behind the log."""
        totals = self.shards.totals()
        return {number: self._lag_part(number, totals[number]) for number in sorted(partitions & totals.keys())}

    def describe_file(self, partition: int) -> dict[str, Any]:
        """The size of a shard's file, and the memory of the process that holds it."""
        path = shard_path(self.shards.data_dir, partition)
        sizes = {"file_bytes": _size(path), "wal_bytes": _size(path.with_name(path.name + ".wal"))}
        return {"worker": self.name, "memory_bytes": read_memory(), **sizes}

    def describe_worker(self) -> dict[str, Any]:
        """This process: memory, logs found anew, and how applying and writing go."""
        applies, writes = self.shards.applies, self.shards.writes
        return {
            "name": self.name,
            "memory_bytes": read_memory(),
            "new_topics": self.shards.new_topics,
            "apply_events": describe_histogram(applies.events),
            "apply_seconds": describe_histogram(applies.seconds),
            "write_events": describe_histogram(writes.events),
            "write_seconds": describe_histogram(writes.seconds),
        }

    def _lag_part(self, partition: int, totals: ShardTotals) -> dict[str, Any]:
        progress = self.shards.progress.get(partition, Progress())
        return describe_lag(totals, progress, self._find_end(partition), self.clock())


def describe_lag(totals: ShardTotals, progress: Progress, end: int | None, now: float) -> dict[str, Any]:
    """One shard's lag as JSON values. `end` is the offset that the log's next record gets, as far as the consumer knows.

    `events` is the records behind times the events a record of late, `seconds` the age of the last applied record while the shard
    is behind (0 when it is not, null when nothing was applied since the start), `event_time_seconds` the age of the latest event.
    """
    reached = 0 if end == 0 else totals.next_offset  # a log that never had a record holds up nobody
    behind = None if end is None or reached is None else max(end - reached, 0)
    age = None if progress.timestamp_ms is None else max(now - progress.timestamp_ms / 1000, 0.0)
    return {
        "next_offset": totals.next_offset,
        "end_offset": end,
        "records": behind,
        "events": None if behind is None else round(behind * progress.events_per_record(totals)),
        "seconds": 0.0 if behind == 0 else age,
        "event_time_seconds": None if totals.latest_us is None else now - totals.latest_us / 1e6,
        "latest_ts": None if totals.latest_us is None else totals.latest_us / 1e6,
    }


def describe_account(partition: int, totals: ShardTotals) -> dict[str, Any]:
    """The account of one shard: events = counted + duplicates + sum of quarantined + pending.

    Reads show what is before `next_offset`; what is before `written_offset` is on disk.
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
        "days_exported": [day.isoformat() for day in totals.days_exported],
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def read_memory() -> int:
    """Resident bytes of this process."""
    import psutil

    return int(psutil.Process(os.getpid()).memory_info().rss)
