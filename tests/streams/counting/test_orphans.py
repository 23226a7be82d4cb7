"""A click that never counts is told why as far as its shard can see; the reason is `orphan_click` in any case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.store.shard import CountingRules, Shard
from tests.support.logs import HOUR, NOW, START, click, day, feed, impression, query, rows


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("clicked", "detail"),
    [
        (click("c", START + 1, "absent"), "impression_id: no such impression in the time before the click"),
        (click("c", START + 1, session_id="t"), "list_of_other_session: the click's session_id is not that of its list"),
        (click("c", START - 412), "ts: 412.000 s before its list, more than events.click_lead_s allows"),
    ],
)
@pytest.mark.parametrize("click_first", [False, True])
def test_an_orphan_says_what_is_known_of_its_list(shard: Shard, clicked: bytes, detail: str, click_first: bool) -> None:
    log = [impression("i", START), clicked]
    feed(shard, log[::-1] if click_first else log, batch=1)
    shard.finish(NOW)
    (row,) = shard.quarantine().to_pylist()
    assert (row["reason"], row["detail"], row["raw"]) == ("orphan_click", detail, clicked)


@pytest.mark.parametrize(("batch", "detail"), [(1, "no such impression"), (2, "came after the click had stopped waiting")])
def test_a_list_that_comes_after_its_click_stopped_waiting_helps_it_no_more(tmp_path: Path, batch: int, detail: str) -> None:
    shard = Shard.open(tmp_path / "live.duckdb", CountingRules())
    feed(shard, [query("q", START + 25 * HOUR)])
    feed(shard, [click("c", START + 1), impression("i", START)], start=1, batch=batch)
    assert shard.totals().quarantined == {"orphan_click": 1}
    assert detail in shard.quarantine()["detail"][0].as_py()
    shard.close()


@pytest.mark.parametrize("lead", [0.0, 0.001, 30.0, 300.0])
@pytest.mark.parametrize("click_first", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_click_within_the_lead_counts_as_one_at_the_time_of_its_list(
    shard: Shard, lead: float, click_first: bool, batch: int
) -> None:
    log = [impression("i", START), click("c", START - lead)]
    feed(shard, log[::-1] if click_first else log, batch=batch)
    feed(shard, [click("again", START - lead)], start=2)
    assert (shard.totals().counted, shard.totals().pending, shard.totals().quarantined) == (3, 0, {})
    assert rows(shard.windows(day(START + 86_400)))[0] == ("q", "a", 0, 1, 1)
    with shard.reader() as con:
        assert set(con.execute("SELECT delay_us FROM clicks").fetchall()) == {(0,)}


def test_the_lead_is_a_setting(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "strict.duckdb", CountingRules(retention_days=0, click_lead_us=0))
    feed(shard, [impression("i", START), click("c", START - 0.001)])
    shard.finish(NOW)
    assert shard.totals().quarantined == {"orphan_click": 1}
    shard.close()


def test_a_click_within_the_lead_over_midnight_counts_on_its_lists_day(shard: Shard) -> None:
    midnight = START // 86_400 * 86_400
    feed(shard, [impression("i", midnight), click("c", midnight - 1)])
    assert rows(shard.windows(day(midnight))) == []
    assert rows(shard.windows(day(midnight + 86_400)))[0] == ("q", "a", 0, 1, 1)
