"""Caps: one session, or one user, adds at most so many lists of a query to the windows of a day, and so many equal pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queryloop.verify.shard_verification import Log, rows, verify_shard
from streams.api.snapshot import dump_counts, read_counts
from streams.counting.caps.left_out import LeftOut
from streams.events.schema import DEFAULT_LIMITS
from streams.store.shard import CountingRules, Shard
from tests.support.logs import NOW, START, click, day, dirty_days, feed, impression, query, roll_up_all
from tests.support.logs import rows as table_rows
from tests.support.recount import recount

DAY = 86_400.0
CAPPED = CountingRules(retention_days=0, session_cap=3)
AFTER = day(START) + timedelta(days=1)
Open = Callable[[CountingRules], Shard]


@pytest.fixture
def open_shard(tmp_path: Path) -> Iterator[Open]:
    """Opens one shard's file by these rules, closing it first where it is open."""
    opened: list[Shard] = []

    def open_file(rules: CountingRules) -> Shard:
        for shard in opened:
            shard.close()
        opened[:] = [Shard.open(tmp_path / "shard.duckdb", rules)]
        return opened[0]

    yield open_file
    for shard in opened:
        shard.close()


def crawl(lists: int, session: str = "crawler", user: str | None = None) -> list[bytes]:
    """Lists of one query that one session got, one a second."""
    return [
        impression(f"{session}{n}", START + n, f"{session}-i{n}", ["a"], session_id=session, user_id=user) for n in range(lists)
    ]


def honest(lists: int, clicks: int) -> list[bytes]:
    """Lists of the same query, each of a session of its own, and clicks on the first ones."""
    shown = [impression(f"e{n}", START + n, f"h{n}", ["a"], session_id=f"h{n}") for n in range(lists)]
    return shown + [click(f"c{n}", START + 100 + n, f"h{n}", session_id=f"h{n}") for n in range(clicks)]


def assert_verified(shard: Shard, log: list[bytes]) -> None:
    """The recount of the log by other code finds no difference."""
    with TemporaryDirectory() as folder:
        source = Log((number, None, value) for number, value in enumerate(log))
        verdict = verify_shard(0, read_counts(dump_counts(shard)), source, DEFAULT_LIMITS, Path(folder), round(NOW * 1e6))
    assert (list(rows(verdict.differences)), verdict.account) == ([], {})


def test_a_crawler_does_not_hide_an_honest_rate(open_shard: Open) -> None:
    log = crawl(2_500) + honest(100, 5)
    shard = open_shard(replace(CAPPED, session_cap=20))
    feed(shard, log, batch=700)
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 120, 5)]
    assert shard.totals().left_out == LeftOut(lists=2_480)
    assert shard.totals().counted == len(log)
    assert_verified(shard, log)


def test_without_a_cap_all_lists_count(open_shard: Open) -> None:
    shard = open_shard(CountingRules(retention_days=0))
    feed(shard, crawl(50))
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 50, 0)]
    assert shard.totals().left_out == LeftOut()


@pytest.mark.parametrize("batch", [1, 2, 10])
def test_the_first_lists_by_time_count_with_their_clicks_whatever_arrives_first(open_shard: Open, batch: int) -> None:
    shown = [impression(f"e{n}", START + n, f"i{n}", ["a"]) for n in range(5)]
    clicks = [click(f"c{n}", START + 10 + n, f"i{n}") for n in range(5)]
    shard = open_shard(CAPPED)
    feed(shard, [*shown[3:], *clicks, *shown[:3]], batch)
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 3, 3)]


@pytest.mark.parametrize("cap", [3, 20])
def test_a_cap_holds_on_a_day_that_has_grown_large(open_shard: Open, cap: int) -> None:
    crowd = [impression(f"x{n}", START + n, f"x{n}", ["b"], session_id=f"x{n}", query=f"x{n}") for n in range(9_000)]
    log = crawl(30)
    shard = open_shard(replace(CAPPED, session_cap=cap))
    feed(shard, [*log[:2], *crowd[:4_500], *log[2:19], *crowd[4_500:], *log[19:]], batch=1_000)
    assert ("q", "a", 0, cap, 0) in table_rows(shard.windows(AFTER))
    assert shard.totals().left_out == LeftOut(lists=30 - cap)


def test_another_query_and_another_day_have_a_cap_of_their_own(open_shard: Open) -> None:
    log = [
        impression(f"{text}{when}{n}", START + when * DAY + n, f"{text}{when}{n}", ["a"], query=text)
        for text in ("red", "blue")
        for when in (0, 1)
        for n in range(5)
    ]
    shard = open_shard(CAPPED)
    feed(shard, log, batch=3)
    assert table_rows(shard.windows(AFTER + timedelta(days=1))) == [("blue", "a", 0, 6, 0), ("red", "a", 0, 6, 0)]


def test_an_equal_pair_of_queries_counts_up_to_the_cap(open_shard: Open) -> None:
    log = [query(f"e{n:02}", START + n, "ab"[n % 2], session_id="crawler") for n in range(20)]
    shard = open_shard(CAPPED)
    feed(shard, log, batch=4)
    assert table_rows(shard.cooccurrence(AFTER)) == [("a", "b", 3), ("b", "a", 3)]
    assert shard.totals().left_out == LeftOut(pairs=13)
    assert_verified(shard, log)


def test_a_users_sessions_in_a_shard_share_the_user_cap(open_shard: Open) -> None:
    log = crawl(2, "s1", "u") + crawl(2, "s2", "u") + crawl(2, "s3", "v") + crawl(2, "s4", "") + crawl(2, "s5")
    shard = open_shard(CountingRules(retention_days=0, user_cap=3))
    feed(shard, log, batch=3)
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 9, 0)]
    assert_verified(shard, log)


def test_a_click_on_a_list_over_the_cap_is_left_out_whatever_other_sessions_call_by_the_same_id(open_shard: Open) -> None:
    log = [
        impression(f"e{n}", START + n, f"i{n}", ["a"], session_id=session)
        for session in ("s", "t")
        for n in range(5 + (session == "t"))
    ]
    log += [click("c", START + 50, "i4", session_id="s"), click("d", START + 50, "i1", session_id="t")]
    shard = open_shard(CAPPED)
    feed(shard, log, batch=4)
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 6, 1)]
    assert_verified(shard, log)


def test_a_changed_cap_holds_for_the_days_before_and_exports_them_again(open_shard: Open) -> None:
    log = crawl(10) + [query(f"q{n:02}", START + n, "ab"[n % 2]) for n in range(20)]
    shard = open_shard(CountingRules(retention_days=0))
    feed(shard, log)
    shard.mark_exported(day(START))
    for rules, lists in ((CAPPED, 3), (replace(CAPPED, session_cap=5), 5), (replace(CAPPED, session_cap=0), 10)):
        shard = open_shard(rules)
        assert dirty_days(shard) == [day(START)]
        assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, lists, 0)]
        assert_verified(shard, log)


def test_compaction_leaves_the_counts_under_the_cap_as_they_are(open_shard: Open) -> None:
    shard = open_shard(CAPPED)
    feed(shard, crawl(10))
    roll_up_all(shard)
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 3, 0)]


def test_a_write_that_failed_leaves_nothing_out_of_the_next_one(open_shard: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, log = open_shard(CAPPED), crawl(10)
    feed(shard, log[:6], batch=2, write=False)
    with monkeypatch.context() as broken, pytest.raises(OSError, match="disk"):
        broken.setattr("streams.store.shard.save_totals", _fail)
        shard.write()
    feed(shard, log[6:], batch=2, start=6, write=False)
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 3, 0)]


def _fail(*_: object) -> None:
    raise OSError("disk full")


@st.composite
def crowded_logs(draw: st.DrawFn) -> list[bytes]:
    """Logs of few sessions and users that repeat few queries, with clicks, and with several lists of one impression_id."""
    return [draw(_events(number)) for number in range(draw(st.integers(1, 60)))]


@st.composite
def _events(draw: st.DrawFn, number: int) -> bytes:
    ts = START + draw(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, DAY, DAY + 1, 20 * DAY]))
    whose = {"session_id": draw(st.sampled_from("st")), "user_id": draw(st.sampled_from([None, "", "u", "v"]))}
    shown = draw(st.integers(0, 15))
    match draw(st.sampled_from(["impression", "impression", "click", "query"])):
        case "impression":
            items = draw(st.sampled_from([["a"], ["b", "a"], ["a", "a"]]))
            return impression(f"e{number}", ts, f"i{shown}", items, query=draw(st.sampled_from(["Red", "blue"])), **whose)
        case "click":
            return click(f"e{number}", ts, f"i{shown}", draw(st.integers(0, 1)), **whose)
        case _:
            return query(f"e{number}", ts, draw(st.sampled_from(["Red", "blue", "green"])), **whose)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    log=crowded_logs(),
    caps=st.sampled_from([(1, 0), (2, 0), (0, 1), (2, 3), (3, 2)]),
    batch=st.integers(1, 30),
    write=st.booleans(),
    chance=st.randoms(use_true_random=False),
)
def test_counts_under_caps_are_those_of_two_recounts_whatever_the_order_and_the_batches(
    log: list[bytes], caps: tuple[int, int], batch: int, write: bool, chance: object
) -> None:
    chance.shuffle(log)  # type: ignore[attr-defined]
    expected = recount(log)
    with TemporaryDirectory() as folder:
        shard = Shard.open(Path(folder) / "shard.duckdb", CountingRules(retention_days=0, session_cap=caps[0], user_cap=caps[1]))
        feed(shard, log, batch, write=write)
        for as_of in (AFTER, AFTER + timedelta(days=1), AFTER + timedelta(days=20)):
            assert table_rows(shard.windows(as_of)) == expected.windows(as_of, *caps)
            assert table_rows(shard.cooccurrence(as_of)) == expected.cooccurrence(as_of, *caps)
        assert_verified(shard, log)
        shard.close()
