"""Windows count impressions and clicks over the 14 UTC days before a day."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from streams.counting.windows import sum_windows
from streams.store.shard import CountingRules, Shard
from tests.support.logs import feed, impression, rows

MIDNIGHT = datetime(2021, 3, 15, tzinfo=UTC).timestamp()


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


def window(cells: list[tuple[str, str, int, int, int]]) -> pa.Table:
    columns = list(zip(*cells, strict=True))
    names = ["query_norm", "item_norm", "position", "impressions", "clicks"]
    types = [pa.string(), pa.string(), pa.int32(), pa.int64(), pa.int64()]
    return pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, columns, types, strict=True)})


@pytest.mark.parametrize(
    ("ts", "first_day", "last_day"),
    [(MIDNIGHT, date(2021, 3, 16), date(2021, 3, 29)), (MIDNIGHT - 0.000001, date(2021, 3, 15), date(2021, 3, 28))],
)
def test_an_impression_is_in_the_windows_of_the_fourteen_days_after_its_own(
    shard: Shard, ts: float, first_day: date, last_day: date
) -> None:
    feed(
        shard,
        [impression("e1", f"{datetime.fromtimestamp(0, UTC) + timedelta(microseconds=round(ts * 1e6)):%Y-%m-%dT%H:%M:%S.%fZ}")],
    )
    one_day = timedelta(days=1)
    inside = [bool(len(shard.windows(as_of))) for as_of in (first_day - one_day, first_day, last_day, last_day + one_day)]
    assert inside == [False, True, True, False]


def test_queries_and_items_are_counted_in_normal_form_and_sorted_by_code_point(shard: Shard) -> None:
    feed(
        shard,
        [
            impression("e1", MIDNIGHT, "i", ["É", "ｚ"], query="B"),
            impression("e2", MIDNIGHT, "j", ["e\u0301", "Z "], query=" b"),
            impression("e3", MIDNIGHT, "k", ["\U0001f600", "\uffee"], query="b"),
        ],
    )
    assert rows(shard.windows(date(2021, 3, 16))) == [
        ("b", "z", 1, 2, 0),
        ("b", "é", 0, 2, 0),
        ("b", "○", 1, 1, 0),
        ("b", "\U0001f600", 0, 1, 0),
    ]


def test_windows_of_shards_are_summed() -> None:
    parts = [window([("q", "a", 0, 3, 1), ("q", "b", 1, 3, 0)]), window([("p", "a", 0, 1, 1), ("q", "a", 0, 2, 2)])]
    assert rows(sum_windows(parts)) == [("p", "a", 0, 1, 1), ("q", "a", 0, 5, 3), ("q", "b", 1, 3, 0)]
