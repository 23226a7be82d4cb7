"""Click rates of window cells from sums over all shards: raw, smoothed by a Beta prior per position, and COEC.

A prior depends on every cell of the window, and one cell may have counts in several shards, so it is computed from the cells of
all shards. For millions of cells that takes seconds, so priors are cached until they are older than the caller allows; a prior
of few impressions is cheap and soon wrong, so it is computed again sooner.
"""

from __future__ import annotations

import base64
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import duckdb
import pyarrow as pa

MAX_PRIORS = 4
DEFAULT_RATE = 0.05
"""The click rate of a window without data: of the order that lists of suggestions have, and overruled by little data."""
PSEUDO_IMPRESSIONS = 20.0
"""How many impressions the default rate weighs, the global rate in a position's, and a position's in a cell's while few are."""
ENOUGH_IMPRESSIONS = 100
"""A position with fewer says nothing yet of how its cells differ, nor which clicks to expect at it."""
MIN_EXPECTED_CLICKS = 1.0
LASTING_IMPRESSIONS = 100_000
"""A prior of so many is kept as long as the caller allows, one of fewer for that share of the time."""
SUM_CELLS = """
SELECT first(position) AS position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM cells GROUP BY key
"""

# Kleinman's moments of a beta-binomial, one Beta(a, b) per position over its k cells of n impressions and c clicks: with
# m = sum c / sum n, rho = (sum n (c/n - m)^2 / (m (1 - m)) - k) / (sum n - k) and a + b = 1 / rho - 1, held in [1, 10^6] where
# the cells differ more or less than a Beta prior can say. With few impressions at a position, rho says nothing: its strength is
# PSEUDO_IMPRESSIONS then. The prior's own mean is m drawn to the rate of all positions, which is drawn to DEFAULT_RATE, so it is
# never 0 or 1.
FIT_PRIOR = f"""
WITH moments AS (
    SELECT position, sum(clicks) AS clicked, sum(impressions) AS total, clicked / total AS mean, count(*) AS cells,
        sum(pow(clicks - impressions * mean_of_position, 2) / impressions) AS spread
    FROM (
        SELECT *, sum(clicks) OVER p / sum(impressions) OVER p AS mean_of_position
        FROM counts WINDOW p AS (PARTITION BY position)
    )
    GROUP BY position
),
correlations AS (
    SELECT position, clicked, total,
        CASE WHEN mean > 0 AND mean < 1 AND total > cells
            THEN (spread / (mean * (1 - mean)) - cells) / (total - cells) ELSE 0 END AS rho,
        (sum(clicked) OVER () + {DEFAULT_RATE * PSEUDO_IMPRESSIONS}) / (sum(total) OVER () + {PSEUDO_IMPRESSIONS}) AS global_rate
    FROM moments
)
SELECT position, (clicked + global_rate * {PSEUDO_IMPRESSIONS}) / (total + {PSEUDO_IMPRESSIONS}) AS mean,
    CASE WHEN total < {ENOUGH_IMPRESSIONS} THEN {PSEUDO_IMPRESSIONS}
        WHEN rho > 0 THEN least(greatest(1 / rho - 1, 1), 1e6) ELSE 1e6 END AS strength,
    total
FROM correlations ORDER BY position
"""


@dataclass(frozen=True, slots=True)
class Prior:
    """Each position's Beta(a, b) prior as (mean, strength), where mean = a / (a + b) and strength = a + b.

    `impressions` are those that it was computed from."""

    positions: dict[int, tuple[float, float]]
    computed_at: float
    impressions: int

    def smooth(self, position: int, impressions: int, clicks: int) -> float:
        """Return the posterior mean of a cell's click rate."""
        mean, strength = self.positions[position]
        return (clicks + mean * strength) / (impressions + strength)


def fit_prior(cells: pa.Table, computed_at: float = 0.0) -> Prior:
    """Return the prior of a whole window, whose cells have the columns position, impressions and clicks at least."""
    with duckdb.connect(":memory:") as con:
        con.register("counts", cells)
        rows = con.execute(FIT_PRIOR).fetchall()
    positions = {position: (mean, strength) for position, mean, strength, _ in rows}
    return Prior(positions, computed_at, sum(total for *_, total in rows))


class PriorCache:
    """Keeps the priors of the last MAX_PRIORS days asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._priors: dict[date, Prior] = {}

    def find(self, as_of: date, max_age_s: float, positions: Iterable[int]) -> Prior | None:
        """Return a cached prior that is at most `max_age_s` old, less where it is of few impressions, and has all these
        positions; or None."""
        prior = self._priors.get(as_of)
        if (
            prior is None
            or self.age(prior) > max_age_s * min(1.0, prior.impressions / LASTING_IMPRESSIONS)
            or not prior.positions.keys() >= set(positions)
        ):
            return None
        return prior

    def age(self, prior: Prior) -> float:
        """Return the seconds since a prior was computed."""
        return self._clock() - prior.computed_at

    def compute(self, packed: Iterable[str]) -> Prior:
        """Return the prior over the cells of all shards, each shard's as `pack_cells` returns them."""
        began = self._clock()
        return fit_prior(_sum_cells(packed), began)

    def keep(self, as_of: date, prior: Prior) -> None:
        """Cache a prior."""
        self._priors.pop(as_of, None)
        self._priors[as_of] = prior
        while len(self._priors) > MAX_PRIORS:
            del self._priors[next(iter(self._priors))]


def pack_cells(cells: pa.Table) -> str:
    """Return a shard's cells (key, position, impressions, clicks) as base64 text of an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, cells.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(cells)
    return base64.b64encode(sink.getvalue()).decode()


def _sum_cells(packed: Iterable[str]) -> pa.Table:
    tables = [pa.ipc.open_stream(base64.b64decode(one)).read_all() for one in packed]
    with duckdb.connect(":memory:", config={"threads": 1}) as con:
        con.register("cells", pa.concat_tables(tables))
        return con.sql(SUM_CELLS).to_arrow_table()


Cell = tuple[str, str, int]
"""Query and item in normal form, and position."""
Sums = tuple[int, int]
"""Impressions and clicks."""


def sum_rows(parts: Iterable[Iterable[tuple[Any, ...]]]) -> dict[Any, Sums]:
    """Return the sums of rows (key ..., impressions, clicks) by key, a tuple."""
    shown: Counter[tuple[Any, ...]] = Counter()
    clicked: Counter[tuple[Any, ...]] = Counter()
    for rows in parts:
        for *key, impressions, clicks in rows:
            shown[tuple(key)] += impressions
            clicked[tuple(key)] += clicks
    return {key: (shown[key], clicked[key]) for key in shown}


def compute_coec(cells: Mapping[Cell, Sums], positions: Mapping[tuple[int], Sums]) -> dict[tuple[str, str], float | None]:
    """Return the COEC of each (query, item): clicks over the clicks expected at its positions.

    None where that says nothing yet: fewer than one click is expected, or one of its positions has under ENOUGH_IMPRESSIONS.
    `positions` has the sums of each position over every cell of the window.
    """
    clicked: Counter[tuple[str, str]] = Counter()
    expected: defaultdict[tuple[str, str], float] = defaultdict(float)
    unknown: set[tuple[str, str]] = set()
    for (query, item, position), (impressions, clicks) in cells.items():
        shown_at, clicked_at = positions[position,]
        clicked[query, item] += clicks
        expected[query, item] += impressions * clicked_at / shown_at
        if shown_at < ENOUGH_IMPRESSIONS:
            unknown.add((query, item))
    return {
        pair: None if pair in unknown or wanted < MIN_EXPECTED_CLICKS else clicked[pair] / wanted
        for pair, wanted in expected.items()
    }


def window_row(cell: Cell, sums: Sums, prior: Prior, coec: Mapping[tuple[str, str], float | None]) -> dict[str, Any]:
    """Return one cell with its rates as JSON values."""
    (query, item, position), (impressions, clicks) = cell, sums
    return {
        "query": query,
        "item": item,
        "position": position,
        "impressions": impressions,
        "clicks": clicks,
        "raw_ctr": clicks / impressions,
        "smoothed_ctr": prior.smooth(position, impressions, clicks),
        "coec": coec[query, item],
    }
