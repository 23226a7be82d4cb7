"""Feeds hand a statement the table that was given last under a name, and put off what is only added until it must be seen."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from streams.counting.connection import Feeds


@pytest.fixture
def feeds() -> Iterator[Feeds]:
    with duckdb.connect(":memory:") as con:
        yield Feeds(con)


def total(feeds: Feeds, table: pa.Table) -> int:
    return int(feeds.execute("SELECT coalesce(sum(n), 0)::BIGINT FROM given", given=table).fetchall()[0][0])


def test_each_statement_reads_the_table_it_is_given(feeds: Feeds) -> None:
    assert [total(feeds, pa.table({"n": numbers})) for numbers in ([1, 2], [5], [7, 8, 9])] == [3, 5, 24]


def test_a_name_may_get_other_columns(feeds: Feeds) -> None:
    assert total(feeds, pa.table({"n": [1]})) == 1
    assert total(feeds, pa.table({"m": ["a", "b"], "n": pa.array([1, 2], pa.int16())})) == 3


def test_a_table_of_several_chunks_is_read_whole(feeds: Feeds) -> None:
    assert feeds.fetch_table("FROM given", given=pa.table({"n": pa.chunked_array([[1], [2, 3]])}))["n"].to_pylist() == [1, 2, 3]


def test_what_is_dropped_is_empty(feeds: Feeds) -> None:
    total(feeds, pa.table({"n": [1]}))
    feeds.drop_tables()
    assert feeds.execute("SELECT count(*) FROM given").fetchall() == [(0,)]


def test_a_name_that_a_rollback_took_back_comes_again(feeds: Feeds) -> None:
    total(feeds, pa.table({"n": [1]}))
    feeds.con.execute("ROLLBACK")
    feeds.in_transaction = False
    with pytest.raises(duckdb.CatalogException):
        feeds.fetch_table("FROM given", given=pa.table({"n": [2]}))
    feeds.roll_back({})
    assert feeds.fetch_table("FROM given", given=pa.table({"n": [2]}))["n"].to_pylist() == [2]
    assert total(feeds, pa.table({"n": [3]})) == 3


def test_a_statement_that_was_planned_reads_what_another_one_made_anew(feeds: Feeds) -> None:
    for numbers in ([1], [2, 3]):
        feeds.execute("CREATE OR REPLACE TEMP TABLE kept AS FROM given", given=pa.table({"n": numbers}))
        feeds.execute("INSERT INTO kept FROM given")
        assert feeds.execute("SELECT n FROM kept ORDER BY n").fetchall() == sorted([(n,) for n in numbers] * 2)


def test_a_statement_that_was_planned_outlives_a_failed_transaction_and_other_columns(feeds: Feeds) -> None:
    feeds.execute("CREATE TABLE kept (n BIGINT)")
    feeds.commit()
    for kind in (pa.int64(), pa.int32(), pa.int64()):
        feeds.execute("INSERT INTO kept SELECT n FROM given", given=pa.table({"n": pa.array([1], kind)}))
        feeds.roll_back({})
        feeds.execute("INSERT INTO kept SELECT n FROM given", given=pa.table({"n": pa.array([2, 3], kind)}))
        feeds.commit()
    assert feeds.execute("SELECT sum(n)::BIGINT, count(*) FROM kept").fetchall() == [(15, 6)]


ADD, SUM = "INSERT INTO kept SELECT n FROM given", "SELECT coalesce(sum(n), 0)::BIGINT FROM kept"


@pytest.fixture
def kept(feeds: Feeds) -> Feeds:
    feeds.execute("CREATE TABLE kept (n BIGINT)")
    feeds.commit()
    return feeds


def add(feeds: Feeds, *numbers: int) -> None:
    feeds.add(ADD, "given", pa.table({"n": pa.array(numbers, pa.int64())}))


def test_what_is_added_waits_until_a_statement_must_see_it_or_it_is_written(kept: Feeds) -> None:
    add(kept, 1)
    add(kept)
    add(kept, 2, 3)
    assert [table["n"].to_pylist() for table in kept.find_added(ADD)] == [[1], [], [2, 3]]
    assert (kept.look_up(SUM).fetchall(), kept.in_transaction) == ([(0,)], False)
    assert kept.look_up_table("FROM kept").num_rows == 0
    assert (kept.execute(SUM).fetchall(), kept.in_transaction) == ([(6,)], True)
    assert kept.look_up(SUM).fetchall() == [(6,)], "it sees what its own transaction did"
    add(kept, 10)
    kept.commit()
    assert (kept.look_up(SUM).fetchall(), kept.in_transaction, kept.find_added(ADD)) == ([(16,)], False, [])


def test_nobody_else_sees_what_is_added_before_it_is_committed(kept: Feeds) -> None:
    other = kept.con.cursor()
    add(kept, 1)
    kept.begin()
    assert other.execute(SUM).fetchall() == [(0,)]
    kept.commit()
    assert other.execute(SUM).fetchall() == [(1,)]


@pytest.mark.parametrize("seen", [False, True])
def test_what_was_put_off_before_a_failure_is_put_off_again_and_what_came_after_is_gone(kept: Feeds, seen: bool) -> None:
    add(kept, 1)
    before = kept.put_off()
    add(kept, 2)
    if seen:
        assert kept.execute(SUM).fetchall() == [(3,)]
        add(kept, 4)
    kept.roll_back(before)
    assert (kept.look_up(SUM).fetchall(), kept.in_transaction) == ([(0,)], False)
    kept.commit()
    assert kept.look_up(SUM).fetchall() == [(1,)]
