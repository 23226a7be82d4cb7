"""A click belongs to the canonical impression of its id if that is 0 to 24 h before it; a click that does not fit is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.store.shard import CountingRules, Shard
from tests.support.logs import HOUR, NOW, START, click, day, difficult_logs, feed, impression, query, rows

AFTER = date.fromordinal(day(START).toordinal() + 5)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


def refused(shard: Shard) -> dict[str, str]:
    return {row["event_id"]: row["reason"] for row in shard.quarantine().to_pylist()}


@pytest.mark.parametrize("delay", [0.0, 24 * HOUR])
def test_a_click_counts_on_its_impressions_day_however_late_it_is(shard: Shard, delay: float) -> None:
    feed(shard, [impression("e1", START, items=["a", "b"]), click("e2", START + delay, position=1)])
    on_the_day_after = date.fromordinal(day(START).toordinal() + 1)
    assert rows(shard.windows(on_the_day_after)) == [("q", "a", 0, 1, 0), ("q", "b", 1, 1, 1)]


def test_the_list_of_a_click_is_found_however_long_ago_it_was_shown(tmp_path: Path) -> None:
    ages = {"minute": 60.0, "hours": 20 * HOUR, "next day": 25 * HOUR, "week": 7 * 24 * HOUR, "month": 30 * 24 * HOUR}
    now = START + 40 * 24 * HOUR
    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, CountingRules(retention_days=0))
    feed(shard, [impression(f"i {name}", now - age, f"list {name}") for name, age in ages.items()])
    shard.close()
    shard = Shard.open(path, CountingRules(retention_days=0))  # and nothing of it is in memory
    feed(shard, [click(f"c {name}", now, f"list {name}") for name in ages], start=len(ages))
    assert refused(shard) == {f"c {name}": "late_click" for name in ("next day", "week", "month")}
    assert shard.totals().counted == len(ages) + 2
    shard.close()


@pytest.mark.parametrize(
    ("clicked", "reason"),
    [
        (click("c", START + 24 * HOUR + 0.000001), "late_click"),
        (click("c", START - 300.000001), "orphan_click"),
        (click("c", START + 1, "absent"), "orphan_click"),
        (click("c", START + 1, position=2), "position_out_of_range"),
        (click("c", START + 1, position=2**31 - 1), "position_out_of_range"),
        (click("c", START + 1, item="b"), "item_mismatch"),
    ],
)
@pytest.mark.parametrize("click_first", [False, True])
def test_a_click_that_does_not_fit_is_refused(shard: Shard, clicked: bytes, reason: str, click_first: bool) -> None:
    log = [impression("e1", START), clicked]
    feed(shard, log[::-1] if click_first else log, batch=1)
    shard.finish(NOW)
    assert refused(shard) == {"c": reason}
    row = shard.quarantine().to_pylist()[0]
    assert (row["raw"], row["log_offset"], row["line"], row["published"]) == (clicked, 0 if click_first else 1, 0, False)
    assert row["detail"]
    assert all(clicks == 0 for *_, clicks in rows(shard.windows(AFTER)))


def test_an_item_is_compared_in_normal_form(shard: Shard) -> None:
    feed(shard, [impression("e1", START, items=["Red  Shoes", "x"]), click("e2", START + 1, item="red shoes")])
    assert rows(shard.windows(AFTER))[0] == ("q", "red shoes", 0, 1, 1)


def test_several_clicks_on_one_position_are_one_click_and_several_counted_events(shard: Shard) -> None:
    feed(shard, [impression("e1", START), click("e2", START + 1), click("e3", START + 2)])
    feed(shard, [click("e4", START + 3), click("e4", START + 3)], start=3)
    assert rows(shard.windows(AFTER)) == [("q", "a", 0, 1, 1), ("q", "b", 1, 1, 0)]
    assert (shard.totals().counted, shard.totals().duplicates) == (4, 1)


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_the_earliest_impression_of_an_id_gets_its_clicks_in_any_order_of_arrival(shard: Shard, order: tuple[int, ...]) -> None:
    log = [
        impression("e1", START, items=["early", "list"], query="first"),
        impression("e2", START + 5, items=["late"], query="second"),
        click("e3", START + 6, position=1),
        click("e4", START + 1, position=0),
    ]
    feed(shard, [log[number] for number in order], batch=1)
    assert rows(shard.windows(AFTER)) == [("first", "early", 0, 1, 1), ("first", "list", 1, 1, 1)]
    assert refused(shard) == {}
    assert (shard.totals().counted, shard.totals().duplicates, shard.totals().pending) == (3, 1, 0)


def test_an_earlier_impression_makes_a_counted_click_late_and_retracts_it(shard: Shard) -> None:
    feed(shard, [impression("e1", START + 20 * HOUR), click("e2", START + 30 * HOUR)])
    assert shard.totals().counted == 2
    applied = feed(shard, [impression("e0", START)], start=2)[0]
    assert (applied.counted, applied.duplicates, applied.quarantined) == (-1, 1, {"late_click": 1})
    assert refused(shard) == {"e2": "late_click"}
    assert rows(shard.windows(AFTER)) == [("q", "a", 0, 1, 0), ("q", "b", 1, 1, 0)]


def test_equal_items_at_two_positions_are_counted_separately(shard: Shard) -> None:
    feed(shard, [impression("e1", START, items=["Same", "same "]), click("e2", START + 1, position=1)])
    assert rows(shard.windows(AFTER)) == [("q", "same", 0, 1, 0), ("q", "same", 1, 1, 1)]


def test_a_click_waits_as_long_as_the_attribution_window_of_event_time(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=30))
    feed(shard, [click("e1", START + 1), query("e2", START + 1 + 24 * HOUR)])
    assert (shard.totals().pending, refused(shard)) == (1, {})
    feed(shard, [query("e3", START + 2 + 24 * HOUR)], start=2)
    assert (shard.totals().pending, refused(shard)) == (0, {"e1": "orphan_click"})
    feed(shard, [impression("e4", START)], start=3)
    assert refused(shard) == {"e1": "orphan_click"}
    feed(shard, [click("e1", START + 1)], start=4)
    assert refused(shard) == {}, "the click was delivered again, after its impression"
    assert (shard.totals().counted, shard.totals().duplicates) == (4, 1)
    shard.close()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("clicked_first", "counted"), [(False, 3), (True, 2)])
def test_a_click_far_behind_event_time_counts_if_its_impression_arrived_before_and_does_not_wait(
    tmp_path: Path, batch: int, clicked_first: bool, counted: int
) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=30))
    behind = [impression("e2", START), click("e3", START + 1)]
    feed(shard, [query("e1", START + 5 * 86_400), *(behind[::-1] if clicked_first else behind)], batch)
    assert refused(shard) == ({"e3": "orphan_click"} if clicked_first else {})
    assert shard.totals().counted == counted
    shard.close()


def test_an_impression_is_kept_beyond_the_retention_while_a_click_on_it_can_count(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=30))
    midnight = (START // 86_400 + 1) * 86_400
    feed(shard, [impression("e1", midnight - HOUR)])
    shard.mark_exported(day(midnight - HOUR))
    feed(shard, [query("e2", midnight + 600 + 30 * 86_400), click("e3", midnight + 1200)], batch=1, start=1)
    assert shard.totals().counted == 3
    shard.close()


def test_in_an_isolated_log_clicks_wait_until_its_end(shard: Shard) -> None:
    feed(shard, [click("e1", START + 1), query("e2", START + 90 * 86_400), impression("e3", START)], batch=1)
    assert rows(shard.windows(AFTER))[0] == ("q", "a", 0, 1, 1)


def outcome(log: list[bytes], batch: int, write: bool = True, key: str | None = None) -> tuple[Any, ...]:
    with TemporaryDirectory() as folder:
        shard = Shard.open(Path(folder) / "shard.duckdb", CountingRules(retention_days=10))
        if key:
            with shard.reader() as con:
                con.execute(f"CREATE MACRO hash(x) AS if(x IS NULL, system.main.hash(NULL), {key})")
        feed(shard, log, batch, write=write)
        windows = [rows(shard.windows(date.fromordinal(day(START).toordinal() + ahead))) for ahead in (1, 8, 15, 22, 36)]
        found = windows, sorted(refused(shard).items(), key=repr), shard.totals()
        shard.close()
    return found


@settings(max_examples=12, deadline=None)
@given(log=difficult_logs().flatmap(st.permutations), batch=st.integers(2, 30))
def test_with_a_retention_the_counts_depend_on_the_log_alone_not_on_the_batching(log: list[bytes], batch: int) -> None:
    windows, found, totals = outcome(log, batch)
    assert outcome(log, 1) == (windows, found, totals)
    assert totals.events == totals.counted + totals.duplicates + sum(totals.quarantined.values()) + totals.pending


@settings(max_examples=20, deadline=None)
@given(log=difficult_logs().flatmap(st.permutations), batch=st.integers(1, 30), write=st.booleans(), keys=st.integers(1, 3))
def test_nothing_depends_on_different_texts_having_different_keys(log: list[bytes], batch: int, write: bool, keys: int) -> None:
    hashed = f"CASE WHEN x IN ('s', 't', '') THEN system.main.hash(x) ELSE system.main.hash(x) % {keys} END"  # sessions have keys
    assert outcome(log, batch, write, hashed) == outcome(log, batch)


@pytest.mark.parametrize("write", [False, True])
def test_a_click_finds_its_list_among_others_of_the_same_key(write: bool) -> None:
    shown = [impression(f"i{name}", START, name, query=name) for name in "abc"]
    clicked = [click(f"c{row}", START + 1 + row, name) for row, name in enumerate("acaxc")]
    for batch in (1, 2, 3, 5, 10):
        windows, found, totals = outcome(shown + clicked, batch, write, "1::UBIGINT")
        cells = [(name, item, place, 1, int(name != "b" and not place)) for name in "abc" for place, item in enumerate("ab")]
        assert (windows[0], found, totals.counted, totals.pending) == (cells, [], 7, 1)
