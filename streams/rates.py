"""Click rates of window cells from sums over all shards: raw, smoothed, and COEC.

`streams.windows` has the same formulas in SQL over whole tables; here they are for the few cells of one answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from streams.priors import Prior

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
