"""Co-occurrence counts consecutive user queries of a session, within 30 minutes and different, on the first one's day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise, permutations
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.counting.connection import ShardConnection
from streams.counting.cooccurrence import INSERT_EDGES, count_queries, find_changes
from streams.counting.key_index import KeySet
from streams.counting.quarantine import QuarantineKeys
from streams.counting.recent_rows import RecentRows, RecentState
from streams.events.columns import to_event_days
from streams.lake.reader import sum_cooccurrence
from streams.store.shard import CountingRules, Shard
from tests.support.logs import START, day, feed, query, rows

AFTER = day(START) + timedelta(days=1)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_query_between_two_others_replaces_their_edge_in_any_order_of_arrival(shard: Shard, order: tuple[int, ...]) -> None:
    log = [query("e1", START, "a"), query("e2", START + 60, "b"), query("e3", START + 120, "c"), query("e0", START + 120, "x")]
    feed(shard, [log[number] for number in order], batch=1)
    assert rows(shard.cooccurrence(AFTER)) == [("a", "b", 1), ("b", "x", 1), ("x", "c", 1)]


@pytest.mark.parametrize(("gap", "edges"), [(1800.0, [("a", "b", 1)]), (1800.000001, [])])
@pytest.mark.parametrize("later_first", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_queries_co_occur_within_thirty_minutes(
    shard: Shard, gap: float, edges: list[tuple[str, str, int]], later_first: bool, batch: int
) -> None:
    log = [query("e1", START, "a"), query("e2", START + gap, "b")]
    feed(shard, log[::-1] if later_first else log, batch)
    assert rows(shard.cooccurrence(AFTER)) == edges


def test_equal_queries_other_sessions_and_recommended_queries_make_no_edge(shard: Shard) -> None:
    feed(
        shard,
        [
            query("e1", START, "Red  Shoes"),
            query("e2", START + 1, "red shoes"),
            query("e3", START + 2, "clicked", source="recommendation"),
            query("e4", START + 3, "elsewhere", session_id="t"),
            query("e5", START + 4, "hats"),
        ],
    )
    assert rows(shard.cooccurrence(AFTER)) == [("red shoes", "hats", 1)]


def test_an_edge_over_midnight_counts_on_the_first_querys_day(shard: Shard) -> None:
    midnight = (START // 86_400 + 1) * 86_400
    feed(shard, [query("e1", midnight - 1, "a"), query("e2", midnight + 1, "b")])
    first_day = day(midnight - 1)
    assert len(shard.cooccurrence(first_day + timedelta(days=14))) == 1
    assert len(shard.cooccurrence(first_day + timedelta(days=15))) == 0
    assert len(shard.cooccurrence(first_day)) == 0


def test_sessions_with_equal_keys_are_distinguished() -> None:
    batches = [[("s", 0, "a"), ("t", 1, "x")], [("s", 2, "b"), ("s", 5, "d"), ("t", 6, "y")], [("t", 3, "z"), ("s", 4, "c")]]
    connection, recent = ShardConnection(duckdb.connect()), RecentState(RecentRows(100), KeySet(), 0, QuarantineKeys(), set(), {})
    for number, batch in enumerate(batches):
        queries = table_of([(session, ts, f"e{number}{ts}", text) for session, ts, text in batch])
        numbers = {"session_key": pa.array([7] * len(batch), pa.uint64()), "day": to_event_days(queries["ts_us"].to_numpy())}
        for name, column in (numbers | {"source": pa.array(["user"] * len(batch))}).items():
            queries = queries.append_column(name, column)
        count_queries(connection, queries, CountingRules(), recent)
    edges: Counter[tuple[str, str]] = Counter()
    for _, first, second, count in (row for table in connection.find_deferred(INSERT_EDGES) for row in rows(table)):
        edges[first, second] += count
    assert +edges == Counter([("a", "b"), ("b", "c"), ("c", "d"), ("x", "z"), ("z", "y")])


def test_tables_of_shards_are_summed() -> None:
    parts = [pa.table({"query": ["a"], "next_query": ["b"], "count": [n]}) for n in (2, 3)]
    assert rows(sum_cooccurrence(parts)) == [("a", "b", 5)]


QUERIES = st.lists(
    st.tuples(st.sampled_from("st"), st.integers(0, 40), st.uuids().map(str), st.sampled_from("abc")),
    max_size=12,
    unique_by=lambda q: q[2],
)


def pairs_of(queries: list[tuple[str, int, str, str]]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for session in "st":
        for (_, ts, _, first), (_, next_ts, _, second) in pairwise(sorted(q for q in queries if q[0] == session)):
            found[first, second] += next_ts - ts <= 10 and first != second
    return found


def table_of(queries: list[tuple[str, int, str, str]]) -> pa.Table:
    columns = list(zip(*queries, strict=True)) or [()] * 4
    return pa.table(
        {
            "session_id": pa.array(columns[0], pa.string()),
            "ts_us": pa.array(columns[1], pa.int64()),
            "event_id": pa.array(columns[2], pa.string()),
            "query_norm": pa.array(columns[3], pa.string()),
        }
    )


@given(QUERIES, st.integers(0, 12))
def test_changes_are_the_consecutive_pairs_after_new_queries_minus_those_before(
    queries: list[tuple[str, int, str, str]], number: int
) -> None:
    old, new = queries[:number], queries[number:]
    expected = pairs_of(queries)
    expected.subtract(pairs_of(old))
    found: Counter[tuple[str, str]] = Counter()
    for _, first, second, count in rows(find_changes(table_of(old), table_of(new), 10)):
        found[first, second] += count
    assert found == Counter({pair: count for pair, count in expected.items() if count})
