"""Progress figures kept in memory for the worker's HTTP: each partition's position, and the size and duration of batches."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.store.shard import ShardTotals

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
EVENTS = (10, 100, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
PREVIOUS_WEIGHT = 0.8
"""Weight of the previous value in the moving average of events per record."""


@dataclass(frozen=True, slots=True)
class LogEnd:
    """The end of a partition's log: `stable` is the offset up to which it can be read, `last` the one that the next record gets.

    They differ while a transaction is open (Kafka's last stable offset and high watermark).
    """

    stable: int
    last: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A partition's progress: Kafka timestamp of the last applied record (milliseconds), moving average of events per record."""

    timestamp_ms: int | None = None
    mean_events: float | None = None

    def after(self, timestamp_ms: int, records: int, events: int) -> Progress:
        """Return the progress after one more batch."""
        now = events / records
        mean = now if self.mean_events is None else PREVIOUS_WEIGHT * self.mean_events + (1 - PREVIOUS_WEIGHT) * now
        return Progress(timestamp_ms, mean)

    def events_per_record(self, totals: ShardTotals) -> float:
        """Return the recent average of events per record, else that since the shard began, else 1."""
        if self.mean_events is not None:
            return self.mean_events
        return totals.events / totals.next_offset if totals.next_offset else 1.0


@dataclass(slots=True)
class Histogram:
    """Observations per bucket, by upper bound, as Prometheus defines a histogram; the last bucket has no bound."""

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
    """Events and seconds of each apply, or of each write, in this process. One thread adds at a time; any thread may read."""

    events: Histogram = field(default_factory=lambda: Histogram(EVENTS))
    seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))

    def add(self, events: int, seconds: float) -> None:
        """Add one apply or write."""
        self.events.add(events)
        self.seconds.add(seconds)
