"""A list counts once: from `impressions` until it is rolled up, and from the sums of its day after that."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from streams.counting import impressions, rollups, windows
from streams.counting.connection import ShardConnection
from streams.events.rules import DAY_US
from streams.store import compaction
from streams.store.shard import CountingRules, Shard
from tests.support.logs import START, click, day, feed, impression, rows

DAY = day(START)
NEXT = DAY + timedelta(days=1)
Cells = list[tuple[str, str, int, int, int]]


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as opened:
        for owner in (impressions, windows, rollups):
            opened.execute(owner.TABLES)
        yield opened


def show(con: duckdb.DuckDBPyConnection, query: str, items: list[str]) -> None:
    sql = "INSERT INTO impressions (day, query_norm, items, length) VALUES ($day, $query, $items, len($items))"
    con.execute(sql, {"day": DAY, "query": query, "items": items})


def cells(con: duckdb.DuckDBPyConnection) -> Cells:
    return con.execute("SELECT query_norm, item_norm, position, impressions, clicks FROM window_cells ORDER BY ALL").fetchall()


def test_lists_that_are_not_rolled_up_are_counted_from_impressions(con: duckdb.DuckDBPyConnection) -> None:
    for query in ("a", "b", "c"):
        show(con, query, ["x", "y"])
    assert cells(con) == [], "a day without a roll-up has no cells"
    known: rollups.Rollups = {}
    rollups.open_rollups(ShardConnection(con, in_transaction=True), [DAY], known)
    assert known == rollups.read_rollups(con) == {DAY: ""}
    assert len(cells(con)) == 6
    rollups.advance_rollup(con, DAY, "b")
    assert cells(con) == [(query, item, place, 1, 0) for query in "bc" for place, item in enumerate("xy")]
    rollups.advance_rollup(con, DAY, None)
    assert cells(con) == []


def test_a_rollup_never_moves_back(con: duckdb.DuckDBPyConnection) -> None:
    rollups.open_rollups(ShardConnection(con, in_transaction=True), [DAY], {})
    for upto, left in (("m", "m"), ("c", "m"), ("é", "é"), (None, None), ("z", None)):
        rollups.advance_rollup(con, DAY, upto)
        assert rollups.read_rollups(con) == {DAY: left}
    rollups.advance_rollup(con, NEXT, "c")
    assert rollups.read_rollups(con) == {DAY: None}


def test_a_rollup_is_opened_once(con: duckdb.DuckDBPyConnection) -> None:
    known: rollups.Rollups = {}
    rollups.open_rollups(ShardConnection(con, in_transaction=True), [DAY], known)
    rollups.advance_rollup(con, DAY, None)
    known = rollups.read_rollups(con)
    rollups.open_rollups(ShardConnection(con, in_transaction=True), [NEXT, DAY], known)
    assert known == rollups.read_rollups(con) == {DAY: None, NEXT: ""}
    assert rollups.find_not_rolled_up(con, NEXT) == []
    assert rollups.find_not_rolled_up(con, NEXT + timedelta(days=1)) == [NEXT]


@pytest.mark.parametrize(
    ("known", "rolled_up"),
    [
        ({DAY: "", NEXT: ""}, []),
        ({DAY: None, NEXT: ""}, ["a", "é"]),
        ({DAY: "b", NEXT: "b"}, ["a", "a2"]),
        ({DAY: "z", NEXT: None}, ["a", "a2", "b2"]),
    ],
)
def test_lists_for_the_rolled_up_part_of_a_day_are_found(known: rollups.Rollups, rolled_up: list[str]) -> None:
    lists = pa.table({"day": pa.array([DAY, NEXT, DAY, NEXT], pa.date32()), "query_norm": ["a", "a2", "é", "b2"]})
    assert rollups.find_rolled_up(lists, known)["query_norm"].to_pylist() == rolled_up


def test_duckdb_arrow_and_python_sort_texts_alike(con: duckdb.DuckDBPyConnection) -> None:
    texts = ["", "a", "a\u0000", "b", "z", "é", "ﬀ", "\U0001f600", "\uffff"]
    by_duckdb = con.execute("SELECT text FROM unnest($texts) t(text) ORDER BY text", {"texts": texts}).fetchall()
    assert [text for (text,) in by_duckdb] == sorted(texts) == pa.array(texts).sort().to_pylist()


@pytest.mark.parametrize("slices", [0, 2, 3, 9])
@pytest.mark.parametrize("number", range(5))
def test_lists_clicks_and_earlier_impressions_count_alike_before_and_after_the_rollup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slices: int, number: int
) -> None:
    monkeypatch.setattr(compaction, "SLICE_ROWS", 2)
    monkeypatch.setattr(compaction, "OVER_US", -DAY_US)
    log = [
        [impression("e1", START + 9, "i", ["a", "b"], query="m"), impression("e2", START + 9, "j", ["a"], query="z")],
        [click("c1", START + 10, "i", 1), click("c2", START + 10, "j", 0)],
        [impression("e3", START + 9, "k", ["a"], query="b"), impression("e4", START + 9, "l", ["c"], query="y")],
        [impression("e5", START + 1, "i", ["b", "c"], query="m"), impression("e6", START + 1, "j", ["d"], query="z")],
    ]
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0, compact_rows=1))
    for start, lines in enumerate([*log, []]):
        if start == number:
            for _ in range(slices):
                shard.maintain(0)
        feed(shard, lines, start=start * 2)
    assert rows(shard.windows(NEXT)) == [
        ("b", "a", 0, 1, 0),
        ("m", "b", 0, 1, 0),
        ("m", "c", 1, 1, 1),
        ("y", "c", 0, 1, 0),
        ("z", "d", 0, 1, 1),
    ]
    shard.close()
