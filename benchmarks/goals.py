"""Goals and repeats: how a benchmark summarises its runs and says which goals it missed, and by how much."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Goal:
    """A measured value and its goal; `unit` follows both numbers in texts."""

    name: str
    value: float
    bound: float
    kind: Literal["at least", "at most"]
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the bound, or equal to it."""
        return self.value >= self.bound if self.kind == "at least" else self.value <= self.bound

    def verdict(self) -> str:
        """Return one line: the value, the goal, and by how much it is missed."""
        line = f"{self.name}: {_number(self.value)}{self.unit}, goal {self.kind} {_number(self.bound)}{self.unit}"
        if self.met:
            return f"{line}: met"
        short = abs(self.value - self.bound)
        share = f" ({short / abs(self.bound):.0%})" if self.bound else ""
        return f"{line}: MISSED by {_number(short)}{self.unit}{share}"

    def to_dict(self) -> dict[str, Any]:
        """The goal as JSON."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True)
class Spread:
    """The median of some repeats, and their extremes, since machines are noisy."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise repeats. Raises ValueError where there is none."""
        if not values:
            raise ValueError("no repeat was measured")
        return cls(statistics.median(values), min(values), max(values), len(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0 < share <= 1) of them do not exceed. Raises ValueError for no values."""
    if not values or not 0 < share <= 1:
        raise ValueError(f"percentile {share} of {len(values)} values")
    ranked = sorted(values)
    rank = -(-len(ranked) * share // 1)  # the ceiling
    return ranked[max(int(rank), 1) - 1]


def _number(value: float) -> str:
    """Return a number with three significant digits and thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
