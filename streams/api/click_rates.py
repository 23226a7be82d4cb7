"""Click rates of window cells from sums over all shards: raw, smoothed by a Beta prior of each position, and COEC.

A prior rests on every cell of the window, and a cell may have counts in several shards, so all cells are brought together to
compute it. That takes seconds for millions of them, so a prior is used again until it is older than the caller allows.
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

KEPT = 4
SUM_CELLS = """
SELECT first(position) AS position, sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM cells GROUP BY key
"""

# Kleinman's moments of a beta-binomial, one Beta(a, b) a position over its k cells of n impressions and c clicks: with
# m = sum c / sum n, rho = (sum n (c/n - m)^2 / (m (1 - m)) - k) / (sum n - k) and a + b = 1 / rho - 1, held in [1, 10^6] where
# the cells differ more or less than a Beta prior can say.
FIT_PRIOR = """
WITH moments AS (
    SELECT position, sum(clicks) / sum(impressions) AS mean, sum(impressions) AS total, count(*) AS cells,
        sum(pow(clicks - impressions * mean_of_position, 2) / impressions) AS spread
    FROM (
        SELECT *, sum(clicks) OVER p / sum(impressions) OVER p AS mean_of_position
        FROM counts WINDOW p AS (PARTITION BY position)
    )
    GROUP BY position
),
correlations AS (
    SELECT position, mean,
        CASE WHEN mean > 0 AND mean < 1 AND total > cells
            THEN (spread / (mean * (1 - mean)) - cells) / (total - cells) ELSE 0 END AS rho
    FROM moments
)
SELECT position, mean, CASE WHEN rho > 0 THEN least(greatest(1 / rho - 1, 1), 1e6) ELSE 1e6 END AS strength
FROM correlations ORDER BY position
"""


@dataclass(frozen=True, slots=True)
class Prior:
    """Mean and strength of each position's Beta prior: a + b is the strength, a / (a + b) the mean."""

    positions: dict[int, tuple[float, float]]
    computed_at: float

    def smooth(self, position: int, impressions: int, clicks: int) -> float:
        """The posterior mean of a cell's click rate."""
        mean, strength = self.positions[position]
        return (clicks + mean * strength) / (impressions + strength)


def fit_prior(cells: pa.Table, computed_at: float = 0.0) -> Prior:
    """The priors of a whole window, whose cells have the columns position, impressions and clicks at least."""
    with duckdb.connect(":memory:") as con:
        con.register("counts", cells)
        return Prior({position: (mean, strength) for position, mean, strength in con.execute(FIT_PRIOR).fetchall()}, computed_at)


class Priors:
    """The priors of the last few days asked for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[date, Prior] = {}

    def find(self, as_of: date, max_age_s: float, positions: Iterable[int]) -> Prior | None:
        """A kept prior that is young enough and knows these positions."""
        prior = self._kept.get(as_of)
        if prior is None or self.age(prior) > max_age_s or not prior.positions.keys() >= set(positions):
            return None
        return prior

    def age(self, prior: Prior) -> float:
        """Seconds since it was computed."""
        return self._clock() - prior.computed_at

    def compute(self, packed: Iterable[str]) -> Prior:
        """The prior over the cells of all shards (of `pack_cells`)."""
        began = self._clock()
        return fit_prior(_sum_cells(packed), began)

    def keep(self, as_of: date, prior: Prior) -> None:
        """Use this one for a while."""
        self._kept.pop(as_of, None)
        self._kept[as_of] = prior
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]


def pack_cells(cells: pa.Table) -> str:
    """A shard's cells (key, position, impressions, clicks) as text that JSON carries."""
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
"""Query and item in normal form, and the position."""
Sums = tuple[int, int]
"""Impressions and clicks."""


def sum_rows(parts: Iterable[Iterable[tuple[Any, ...]]]) -> dict[Any, Sums]:
    """Sum rows of (key ..., impressions, clicks) by their key, a tuple."""
    shown: Counter[tuple[Any, ...]] = Counter()
    clicked: Counter[tuple[Any, ...]] = Counter()
    for rows in parts:
        for *key, impressions, clicks in rows:
            shown[tuple(key)] += impressions
            clicked[tuple(key)] += clicks
    return {key: (shown[key], clicked[key]) for key in shown}


def find_coec(cells: Mapping[Cell, Sums], positions: Mapping[tuple[int], Sums]) -> dict[tuple[str, str], float | None]:
    """COEC of each (query, item): its clicks over those expected at the positions shown, None where none is.

    `positions` are the sums of each position over every cell of the window.
    """
    clicked: Counter[tuple[str, str]] = Counter()
    expected: defaultdict[tuple[str, str], float] = defaultdict(float)
    for (query, item, position), (impressions, clicks) in cells.items():
        shown_there, clicked_there = positions[position,]
        clicked[query, item] += clicks
        expected[query, item] += impressions * clicked_there / shown_there
    return {pair: clicked[pair] / wanted if wanted else None for pair, wanted in expected.items()}


def window_row(cell: Cell, sums: Sums, prior: Prior, coec: Mapping[tuple[str, str], float | None]) -> dict[str, Any]:
    """One cell as JSON values."""
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
