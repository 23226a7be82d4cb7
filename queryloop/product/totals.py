"""The product's own totals of what it sent and what lists it got, to compare with the loop's counters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shown:
    """One answered list: its event time and the real time of the answer (both epoch seconds), and the release that wrote it."""

    ts: float
    answered_at: float
    release: str
    query: str
    items: tuple[str, ...]


@dataclass
class ProductTotals:
    """Running totals of one product. `latencies_ms` are of real time, of answered calls for a list only."""

    queries: int = 0
    clicks: int = 0
    duplicates: int = 0
    refused: int = 0
    failed: int = 0
    spoiled: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    shown: list[Shown] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Calls for a list that were answered."""
        return len(self.shown)

    @property
    def impressions(self) -> int:
        """Lists that are not empty; serving emits an impression for each."""
        return sum(bool(one.items) for one in self.shown)

    @property
    def counted(self) -> int:
        """Events that the loop should count: each once, and only those that can be used."""
        return self.queries + self.clicks + self.impressions

    @property
    def emitted(self) -> int:
        """Events that were sent: those that count, those posted twice, and those that belong into quarantine."""
        return self.counted + self.duplicates + self.spoiled.total()

    def fail(self, reason: str) -> None:
        """Count a call that failed."""
        self.failed += 1
        self.failures[reason] += 1

    def describe_failures(self) -> list[str]:
        """Return why calls failed, the three most frequent reasons first."""
        return [f"{reason} ({count} times)" for reason, count in self.failures.most_common(3)]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed (nearest rank); 0.0 of none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
