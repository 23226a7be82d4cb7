"""Writes days of a lake directly, for the tests of what reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streams.counting.retention import EPOCH
from streams.events.normal_form import normalise
from streams.lake.reader import SCHEMAS

DAY_US = 86_400_000_000


def write_impressions(lake: Path, day: date, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write impressions of a day, a second apart; a missing field of a row gets a default."""
    _write(lake, "impressions", day, [_impression(day, number, row) for number, row in enumerate(rows)])


def write_cooccurrence(lake: Path, day: date, triples: Iterable[tuple[str, str, int]]) -> None:
    _write(lake, "cooccurrence", day, [{"query": q, "next_query": n, "count": c} for q, n, c in triples])


def _impression(day: date, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    items = row.get("items", ["one", "two"])
    filled = {
        "impression_id": f"{day}-{number}",
        "event_id": f"e-{day}-{number}",
        "ts_us": (day - EPOCH).days * DAY_US + number * 1_000_000,
        "session_id": f"s-{day}-{number}",
        "query_norm": normalise(row["query"]),
        "task": "suggest",
        "items": items,
        "clicked": [False] * len(items),
        **row,
    }
    return {name: filled.get(name) for name in SCHEMAS["impressions"].names}


def _write(lake: Path, kind: str, day: date, rows: list[dict[str, Any]]) -> None:
    folder = lake / kind / f"day={day}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[kind]), folder / "shard-0.parquet")
