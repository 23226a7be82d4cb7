"""Recent rows are found by key; beyond the limit the oldest are dropped, and `complete_from` shows from where all are there."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
from hypothesis import given, settings

from streams.counting.key_index import SESSION_KEY, key_sql
from streams.counting.recent_rows import FEW_ROWS, RUN_ROWS, RecentRows, load_recent_state
from streams.store.shard import CountingRules, Shard
from tests.support.logs import START, click, dirty_days, feed, impression, query, read

BATCHES = st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 50)), max_size=8), max_size=10)


def numbered(rows: RecentRows, batches: list[list[tuple[int, int]]]) -> list[tuple[int, int, int]]:
    """Add batches of (key, order); return (key, order, number) of all."""
    added: list[tuple[int, int, int]] = []
    for batch in batches:
        numbers = range(len(added), len(added) + len(batch))
        keys, orders = np.array([key for key, _ in batch], np.uint64), [order for _, order in batch]
        table = pa.table({"order": pa.array(orders, pa.int64()), "number": pa.array(numbers, pa.int64())})
        rows.add(keys, table, max(orders, default=0))
        added += [(key, order, number) for (key, order), number in zip(batch, numbers, strict=True)]
    return added


def find(rows: RecentRows, keys: list[int]) -> list[tuple[int, int, int]]:
    asked = np.array(keys, np.uint64)
    places, table = rows.find(asked)
    if table is None:
        return []
    return sorted(zip(asked[places].tolist(), *(column.to_pylist() for column in table.columns), strict=True))


@settings(deadline=None)
@given(BATCHES, st.lists(st.integers(0, 12), unique=True, max_size=8), st.integers(1, 40))
def test_every_row_from_complete_from_on_is_found_and_no_other_key(
    batches: list[list[tuple[int, int]]], keys: list[int], limit: int
) -> None:
    rows = RecentRows(limit)
    added = numbered(rows, batches)
    found = find(rows, keys)
    assert set(found) <= {row for row in added if row[0] in keys}
    assert {row for row in added if row[0] in keys and row[1] >= rows.complete_from} <= set(found)
    assert len(set(found)) == len(found)
    if len(added) <= limit:
        assert found == sorted(row for row in added if row[0] in keys)


def test_the_oldest_runs_are_dropped_beyond_the_limit() -> None:
    rows = RecentRows(limit=10)
    numbered(rows, [[(key, batch) for key in range(6)] for batch in range(4)])
    assert 0 < sum(len(run.keys) for run in rows._runs) <= 12
    assert rows.complete_from > 0


def test_many_small_batches_are_merged_into_few_runs() -> None:
    rows = RecentRows(limit=100_000)
    numbered(rows, [[(key, batch) for key in range(25)] for batch in range(2_000)])
    sizes = [len(run.keys) for run in rows._runs]
    assert sum(sizes) == 50_000
    assert max(sizes) <= RUN_ROWS
    assert len(sizes) < 20


def test_few_rows_and_many_are_found_in_one_chunk() -> None:
    rows = RecentRows(limit=100_000)
    added = numbered(rows, [[(key, 0) for key in [1, 2, 1, 2, 2]], [(key % 3, 1) for key in range(9 * FEW_ROWS)]])
    asked = [[7, 2], [2, 1, 0], [1]]
    assert [find(rows, keys) for keys in asked] == [sorted(row for row in added if row[0] in keys) for keys in asked]
    _, table = rows.find(np.array([2, 1], np.uint64))
    assert table is not None and table["number"].num_chunks == 1


def test_only_rows_older_than_since_may_be_left_out() -> None:
    rows = RecentRows(limit=100_000)
    numbered(rows, [[(1, batch)] * 2**batch for batch in range(5, -1, -1)])
    _, table = rows.find(np.array([1], np.uint64), since=3)
    assert table is not None and {3, 4, 5} <= set(table["order"].to_pylist()) < set(range(6))
    assert rows.find(np.array([1], np.uint64), since=6)[1] is None


def test_after_clear_no_row_is_found_and_later_rows_are_complete() -> None:
    rows = RecentRows(limit=10)
    numbered(rows, [[(1, 1)]])
    rows.clear(2)
    assert (find(rows, [1]), rows.complete_from) == ([], 2)


def test_an_opened_shard_loads_pending_keys_dirty_days_and_the_last_hours_queries(tmp_path: Path) -> None:
    rules = CountingRules(retention_days=0)
    shard = Shard.open(tmp_path / "shard.duckdb", rules)
    old, clicked = query("e1", START - 20_000), click("e4", START, "absent")
    feed(shard, [old, query("e2", START), query("e3", START, source="recommendation"), clicked, impression("e5", START, "i")])
    totals = shard.totals()
    recent = load_recent_state(shard.reader(), totals.latest_us, rules)
    waiting, shown, session = key_sql("'absent'", "'s'"), key_sql("'i'", "'s'"), SESSION_KEY.format(session="'s'")
    keys = read(shard, f"SELECT {waiting} AS waiting, {shown} AS shown, {session} AS session")
    assert recent.pending_keys.contains(keys["waiting"].to_numpy()).all()
    assert not recent.pending_keys.contains(keys["shown"].to_numpy()).any()
    assert recent.first_pending_us == round(START * 1e6)
    assert not recent.quarantine_keys.ids.contains(keys["shown"].to_numpy()).any()
    assert recent.dirty_days == set(dirty_days(shard)) != set()
    _, queries = recent.queries.find(keys["session"].to_numpy())
    assert queries is not None and queries["event_id"].to_pylist() == ["e2"]
    assert recent.queries.complete_from > round((START - 20_000) * 1e6)
    shard.close()
