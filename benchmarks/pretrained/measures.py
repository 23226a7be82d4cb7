"""What a policy's lists are worth: their form, what the grammar had to force, repetition inside a text, the true click rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from queryloop.product.clicks import best_list, list_click_probability
from queryloop.product.world import World
from serving.policy.engines import Generation
from serving.policy.lists import repair_items
from trainers.policy.cold_start.repetition import repeats_itself

RESAMPLES, INSIDE = 4000, 0.95
"""Bootstrap: how often the prompts are drawn anew, and the share of the results that an interval holds."""


@dataclass(frozen=True)
class Interval:
    """A measured mean or ratio of means, and where `INSIDE` of the means lie when the prompts are drawn anew."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Row:
    """One policy on the test's queries. Shares are 0 to 1; `rates` are the true click probability of each query's list.

    `forced_lists` are the lists with any token that the grammar chose, `forced_tokens` such tokens; `clean_texts` the items
    without a repetition inside; `seconds` what making the policy and writing its lists took."""

    name: str
    well_formed: float
    forced_lists: float
    forced_tokens: float
    clean_texts: float
    seconds: float
    lists: tuple[tuple[str, ...], ...]
    rates: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON: the interval instead of the single lists and rates."""
        figures = {name: value for name, value in asdict(self).items() if name not in ("lists", "rates")}
        return {**figures, "true_click_rate": asdict(bootstrap_mean(self.rates))}


def measure(name: str, world: World, queries: Sequence[str], written: Sequence[Generation], seconds: float) -> Row:
    """Return what the lists for these queries are worth. An ill-formed list is shown as serving would: its usable items."""
    lists = tuple(repair_items(one.list.items, len(one.list.items)) for one in written)
    texts = [item for one in written for item in one.list.items]
    return Row(
        name,
        well_formed=_share([one.list.well_formed for one in written]),
        forced_lists=_share([one.forced > 0 for one in written]),
        forced_tokens=sum(one.forced for one in written) / max(1, sum(len(one.token_ids) for one in written)),
        clean_texts=_share([not repeats_itself(text) for text in texts]),
        seconds=seconds,
        lists=lists,
        rates=tuple(list_click_probability(world, query, items) for query, items in zip(queries, lists, strict=True)),
    )


def measure_ceiling(world: World, queries: Sequence[str]) -> float:
    """Return the mean true click probability of the best lists that the world has."""
    best = {query: list_click_probability(world, query, best_list(world, query)) for query in dict.fromkeys(queries)}
    return float(np.mean([best[query] for query in queries]))


def bootstrap_mean(values: Sequence[float]) -> Interval:
    """Return the mean of a value a prompt."""
    return _interval(np.asarray(values, np.float64).mean(), _resample(values).mean(axis=1))


def bootstrap_ratio(values: Sequence[float], base: Sequence[float]) -> Interval:
    """Return the ratio of two policies' means over the same prompts, drawn in pairs: most of their spread is the prompts'."""
    return _interval(np.mean(values) / np.mean(base), _resample(values).mean(axis=1) / _resample(base).mean(axis=1))


def _resample(values: Sequence[float]) -> NDArray[np.float64]:
    """Return the values of `RESAMPLES` draws of all prompts; the same prompts for every policy."""
    rows = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    return np.asarray(values, np.float64)[rows]


def _interval(value: Any, drawn: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(drawn, [(1 - INSIDE) / 2, (1 + INSIDE) / 2])
    return Interval(float(value), float(low), float(high))


def _share(values: Sequence[bool]) -> float:
    return sum(values) / max(1, len(values))
