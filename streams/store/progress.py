"""How applying goes, kept in memory for the worker's HTTP: where each partition is, how large batches are, how long they take."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.store.shard import ShardTotals

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
EVENTS = (10, 100, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
RECENT = 0.8
"""Weight of what was known before in the moving mean of events a record."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a partition is: the Kafka timestamp of the last applied record (milliseconds), and the events a record of late."""

    timestamp_ms: int | None = None
    mean_events: float | None = None

    def after(self, timestamp_ms: int, records: int, events: int) -> Progress:
        """The progress after one more batch."""
        now = events / records
        mean = now if self.mean_events is None else RECENT * self.mean_events + (1 - RECENT) * now
        return Progress(timestamp_ms, mean)

    def events_per_record(self, totals: ShardTotals) -> float:
        """Events a record: of late, else over the shard's life, else one."""
        if self.mean_events is not None:
            return self.mean_events
        return totals.events / totals.next_offset if totals.next_offset else 1.0


@dataclass(slots=True)
class Histogram:
    """Counts by upper bound, as Prometheus wants them."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Timings:
    """How many events and seconds each apply of this process took, or each write. Added to by one at a time, read anywhere."""

    events: Histogram = field(default_factory=lambda: Histogram(EVENTS))
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))

    def add(self, events: int, seconds: float) -> None:
        """Count one more."""
        self.events.add(events)
        self.seconds.add(seconds)
