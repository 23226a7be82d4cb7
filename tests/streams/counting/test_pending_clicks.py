"""Clicks that wait are taken once, wherever they are: in memory, in the file, or still to be written."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.counting import clicks, pending_clicks
from streams.counting.clicks import Candidate
from streams.counting.connection import Feeds
from streams.counting.pending_clicks import WaitingOnFile, pending_state, take_orphans, take_waiting, wait

LISTS = ("a", "b", "c", "d")


def candidate(number: int, impression_id: str) -> Candidate:
    return Candidate(-1, 0, number, number, number, impression_id, f"e{number}", 0, None, b"{}", number, 0)


@pytest.fixture
def feeds() -> Iterator[Feeds]:
    with duckdb.connect() as con:
        con.execute(clicks.TABLES)
        yield Feeds(con)


def taken(feeds: Feeds, on_file: WaitingOnFile, *impression_ids: str) -> list[str]:
    return [click.event_id for click in take_waiting(feeds, impression_ids, on_file)]


def test_what_waits_is_taken_once_from_the_file_before_what_is_to_be_written(feeds: Feeds) -> None:
    on_file = WaitingOnFile()
    wait(feeds, [candidate(1, "a"), candidate(2, "b"), candidate(3, "a")])
    feeds.commit()
    wait(feeds, [candidate(4, "a"), candidate(5, "b")])
    wait(feeds, [candidate(6, "c")])
    assert taken(feeds, on_file, "a", "none") == ["e1", "e3", "e4"]
    assert taken(feeds, on_file, "a") == []
    assert taken(feeds, on_file, "c", "b") == ["e2", "e5", "e6"]
    feeds.commit()
    assert pending_state(feeds.con) == (0, None)


def test_a_transaction_that_is_open_is_looked_into(feeds: Feeds) -> None:
    on_file = WaitingOnFile()
    wait(feeds, [candidate(1, "a"), candidate(2, "b")])
    feeds.commit()
    assert taken(feeds, on_file, "b") == ["e2"]
    wait(feeds, [candidate(3, "a")])
    assert [click.event_id for click in take_orphans(feeds, 2)] == ["e1"]
    assert taken(feeds, on_file, "a", "b") == ["e3"]


def test_an_impression_that_is_asked_for_twice_gives_its_clicks_once(feeds: Feeds) -> None:
    wait(feeds, [candidate(1, "a")])
    feeds.commit()
    assert taken(feeds, WaitingOnFile(), "a", "a") == ["e1"]


STEP = st.one_of(
    st.tuples(st.just("wait"), st.lists(st.sampled_from(LISTS), max_size=3)),
    st.tuples(st.just("take"), st.lists(st.sampled_from(LISTS), min_size=1, max_size=2)),
    st.tuples(st.just("write"), st.just([])),
    st.tuples(st.just("begin"), st.just([])),
)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(STEP, max_size=15), few=st.sampled_from([0, 2, pending_clicks.FEW]))
def test_any_order_of_waiting_taking_and_writing_takes_what_a_plain_dictionary_does(
    steps: list[tuple[str, list[str]]], few: int
) -> None:
    expected: dict[str, list[str]] = {name: [] for name in LISTS}
    numbers, on_file = itertools.count(1), WaitingOnFile()
    with duckdb.connect() as con, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pending_clicks, "FEW", few)
        con.execute(clicks.TABLES)
        feeds = Feeds(con)
        for step, names in steps:
            if step == "wait":
                found = [candidate(next(numbers), name) for name in names]
                wait(feeds, found)
                for click in found:
                    expected[click.impression_id].append(click.event_id)
            elif step == "take":
                assert sorted(taken(feeds, on_file, *names)) == sorted(event for name in set(names) for event in expected[name])
                expected |= {name: [] for name in names}
            elif step == "begin":
                feeds.begin()
            else:
                feeds.commit()
                on_file.forget()
        feeds.commit()
        left = {event for (event,) in con.execute("SELECT event_id FROM pending").fetchall()}
    assert left == set(itertools.chain(*expected.values()))
