"""A pending click is taken once, wherever it is: in memory, in the file, or in a deferred write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.counting import clicks, pending_clicks
from streams.counting.clicks import Candidate
from streams.counting.connection import ShardConnection
from streams.counting.pending_clicks import PendingInFile, add_pending, pending_state, take_orphans, take_pending

LISTS = ("a", "b", "c", "d")
KEYS = {name: number for number, name in enumerate((*LISTS, "none"))}


def candidate(number: int, impression_id: str) -> Candidate:
    return Candidate(-1, 0, number, number, KEYS[impression_id], impression_id, f"e{number}", 0, None, b"{}", number, 0, "s")


@pytest.fixture
def connection() -> Iterator[ShardConnection]:
    with duckdb.connect() as con:
        con.execute(clicks.TABLES)
        yield ShardConnection(con)


def taken(connection: ShardConnection, in_file: PendingInFile, *impression_ids: str) -> list[str]:
    lists = {"impression_key": [KEYS[name] for name in impression_ids], "impression_id": impression_ids}
    found = take_pending(connection, pa.table(lists, clicks.WANTED_SCHEMA), in_file)
    return [click.event_id for click in found]


def test_pending_clicks_are_taken_once_those_of_the_file_before_deferred_ones(connection: ShardConnection) -> None:
    in_file = PendingInFile()
    add_pending(connection, [candidate(1, "a"), candidate(2, "b"), candidate(3, "a")])
    connection.commit()
    add_pending(connection, [candidate(4, "a"), candidate(5, "b")])
    add_pending(connection, [candidate(6, "c")])
    assert taken(connection, in_file, "a", "none") == ["e1", "e3", "e4"]
    assert taken(connection, in_file, "a") == []
    assert taken(connection, in_file, "c", "b") == ["e2", "e5", "e6"]
    connection.commit()
    assert pending_state(connection.con) == (0, None)


def test_clicks_that_the_open_transaction_added_are_taken(connection: ShardConnection) -> None:
    in_file = PendingInFile()
    add_pending(connection, [candidate(1, "a"), candidate(2, "b")])
    connection.commit()
    assert taken(connection, in_file, "b") == ["e2"]
    add_pending(connection, [candidate(3, "a")])
    assert [click.event_id for click in take_orphans(connection, 2)] == ["e1"]
    assert taken(connection, in_file, "a", "b") == ["e3"]


def test_an_impression_id_given_twice_takes_its_clicks_once(connection: ShardConnection) -> None:
    add_pending(connection, [candidate(1, "a")])
    connection.commit()
    assert taken(connection, PendingInFile(), "a", "a") == ["e1"]


STEP = st.one_of(
    st.tuples(st.just("add"), st.lists(st.sampled_from(LISTS), max_size=3)),
    st.tuples(st.just("take"), st.lists(st.sampled_from(LISTS), min_size=1, max_size=2)),
    st.tuples(st.just("write"), st.just([])),
    st.tuples(st.just("begin"), st.just([])),
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEP, max_size=15), few=st.sampled_from([0, 2, pending_clicks.FEW]))
def test_any_order_of_adding_taking_and_writing_takes_what_a_dictionary_would(
    steps: list[tuple[str, list[str]]], few: int
) -> None:
    expected: dict[str, list[str]] = {name: [] for name in LISTS}
    numbers, in_file = itertools.count(1), PendingInFile()
    with duckdb.connect() as con, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_clicks, "FEW", few)
        con.execute(clicks.TABLES)
        connection = ShardConnection(con)
        for step, names in steps:
            if step == "add":
                found = [candidate(next(numbers), name) for name in names]
                add_pending(connection, found)
                for click in found:
                    expected[click.impression_id].append(click.event_id)
            elif step == "take":
                assert sorted(taken(connection, in_file, *names)) == sorted(
                    event for name in set(names) for event in expected[name]
                )
                expected |= {name: [] for name in names}
            elif step == "begin":
                connection.begin()
            else:
                connection.commit()
                in_file.invalidate()
        connection.commit()
        left = {event for (event,) in con.execute("SELECT event_id FROM pending").fetchall()}
    assert left == set(itertools.chain(*expected.values()))
