"""A statement reads the table registered last under a name, and deferred writes run only when they must be seen or written."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from streams.counting.connection import ShardConnection


@pytest.fixture
def connection() -> Iterator[ShardConnection]:
    with duckdb.connect(":memory:") as con:
        yield ShardConnection(con)


def total(connection: ShardConnection, table: pa.Table) -> int:
    return int(connection.execute("SELECT coalesce(sum(n), 0)::BIGINT FROM given", given=table).fetchall()[0][0])


def test_each_statement_reads_the_table_it_is_given(connection: ShardConnection) -> None:
    assert [total(connection, pa.table({"n": numbers})) for numbers in ([1, 2], [5], [7, 8, 9])] == [3, 5, 24]


def test_a_name_may_get_other_columns(connection: ShardConnection) -> None:
    assert total(connection, pa.table({"n": [1]})) == 1
    assert total(connection, pa.table({"m": ["a", "b"], "n": pa.array([1, 2], pa.int16())})) == 3


def test_a_table_of_several_chunks_is_read_whole(connection: ShardConnection) -> None:
    assert connection.fetch_table("FROM given", given=pa.table({"n": pa.chunked_array([[1], [2, 3]])}))["n"].to_pylist() == [
        1,
        2,
        3,
    ]


def test_cleared_inputs_are_empty(connection: ShardConnection) -> None:
    total(connection, pa.table({"n": [1]}))
    connection.clear_inputs()
    assert connection.execute("SELECT count(*) FROM given").fetchall() == [(0,)]


def test_a_name_that_a_rollback_removed_is_registered_again(connection: ShardConnection) -> None:
    total(connection, pa.table({"n": [1]}))
    connection.con.execute("ROLLBACK")
    connection.in_transaction = False
    with pytest.raises(duckdb.CatalogException):
        connection.fetch_table("FROM given", given=pa.table({"n": [2]}))
    connection.roll_back({})
    assert connection.fetch_table("FROM given", given=pa.table({"n": [2]}))["n"].to_pylist() == [2]
    assert total(connection, pa.table({"n": [3]})) == 3


def test_a_planned_statement_reads_a_table_that_was_created_again(connection: ShardConnection) -> None:
    for numbers in ([1], [2, 3]):
        connection.execute("CREATE OR REPLACE TEMP TABLE kept AS FROM given", given=pa.table({"n": numbers}))
        connection.execute("INSERT INTO kept FROM given")
        assert connection.execute("SELECT n FROM kept ORDER BY n").fetchall() == sorted([(n,) for n in numbers] * 2)


def test_a_planned_statement_works_after_a_failed_transaction_and_with_other_columns(connection: ShardConnection) -> None:
    connection.execute("CREATE TABLE kept (n BIGINT)")
    connection.commit()
    for kind in (pa.int64(), pa.int32(), pa.int64()):
        connection.execute("INSERT INTO kept SELECT n FROM given", given=pa.table({"n": pa.array([1], kind)}))
        connection.roll_back({})
        connection.execute("INSERT INTO kept SELECT n FROM given", given=pa.table({"n": pa.array([2, 3], kind)}))
        connection.commit()
    assert connection.execute("SELECT sum(n)::BIGINT, count(*) FROM kept").fetchall() == [(15, 6)]


INSERT, SUM = "INSERT INTO kept SELECT n FROM given", "SELECT coalesce(sum(n), 0)::BIGINT FROM kept"


@pytest.fixture
def kept(connection: ShardConnection) -> ShardConnection:
    connection.execute("CREATE TABLE kept (n BIGINT)")
    connection.commit()
    return connection


def defer(connection: ShardConnection, *numbers: int) -> None:
    connection.defer(INSERT, "given", pa.table({"n": pa.array(numbers, pa.int64())}))


def test_a_deferred_write_runs_when_a_statement_must_see_it_or_it_is_committed(kept: ShardConnection) -> None:
    defer(kept, 1)
    defer(kept)
    defer(kept, 2, 3)
    assert [table["n"].to_pylist() for table in kept.find_deferred(INSERT)] == [[1], [], [2, 3]]
    assert (kept.look_up(SUM).fetchall(), kept.in_transaction) == ([(0,)], False)
    assert kept.look_up_table("FROM kept").num_rows == 0
    assert (kept.execute(SUM).fetchall(), kept.in_transaction) == ([(6,)], True)
    assert kept.look_up(SUM).fetchall() == [(6,)], "it sees what its own transaction did"
    defer(kept, 10)
    kept.commit()
    assert (kept.look_up(SUM).fetchall(), kept.in_transaction, kept.find_deferred(INSERT)) == ([(16,)], False, [])


def test_no_other_connection_sees_a_deferred_write_before_it_is_committed(kept: ShardConnection) -> None:
    other = kept.con.cursor()
    defer(kept, 1)
    kept.begin()
    assert other.execute(SUM).fetchall() == [(0,)]
    kept.commit()
    assert other.execute(SUM).fetchall() == [(1,)]


@pytest.mark.parametrize("seen", [False, True])
def test_a_rollback_defers_again_what_was_deferred_before_and_drops_what_was_deferred_later(
    kept: ShardConnection, seen: bool
) -> None:
    defer(kept, 1)
    before = kept.copy_deferred()
    defer(kept, 2)
    if seen:
        assert kept.execute(SUM).fetchall() == [(3,)]
        defer(kept, 4)
    kept.roll_back(before)
    assert (kept.look_up(SUM).fetchall(), kept.in_transaction) == ([(0,)], False)
    kept.commit()
    assert kept.look_up(SUM).fetchall() == [(1,)]
