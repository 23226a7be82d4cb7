"""The recount equals the store on difficult logs and a third recount in plain Python; and it names exactly what was changed."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queryloop.verify import arrivals, recount_queries
from queryloop.verify.arrivals import Arrivals
from queryloop.verify.shard_verification import EXPIRED, UNCOVERED, Log, Verdict, empty_counts, rows, verify_shard
from streams.api.snapshot import Counts, CountsError, dump_counts, read_counts
from streams.events.batch_decoder import decode_columns
from streams.events.rules import CountingRules
from streams.events.schema import DEFAULT_LIMITS
from streams.store.shard import Shard, ShardTotals
from tests.support.logs import HOUR, NOW, START, click, day, difficult_logs, feed, impression, query, roll_up_all
from tests.support.recount import recount

KEEP_ALL = CountingRules(retention_days=0)
SHORT = CountingRules(retention_days=3)
WEEK = CountingRules(retention_days=7)
DAY = 86_400
NOW_US = round(NOW * 1e6)
TODAY = day(START)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules())
    yield opened
    opened.close()


def verify(shard: Shard, lines: Sequence[bytes], *, ended: bool = False, removed_until_us: int | None = None) -> Verdict:
    counts = read_counts(dump_counts(shard))
    with TemporaryDirectory() as folder:
        log = Log(((number, None, value) for number, value in enumerate(lines)), removed_until_us, ended)
        return verify_shard(3, counts, log, DEFAULT_LIMITS, Path(folder), NOW_US)


def assert_equal(verdict: Verdict) -> None:
    assert not list(rows(verdict.differences))
    assert not verdict.account
    assert verdict.equal and verdict.complete


@st.composite
def contested_logs(draw: st.DrawFn) -> list[bytes]:
    """Logs in which few ids have many versions: refused ones, repairs, orphans, several lists of one impression_id."""
    return [draw(_versions()) for _ in range(draw(st.integers(1, 20)))]


@st.composite
def _versions(draw: st.DrawFn) -> bytes:
    event_id = draw(st.sampled_from(["x", "y", "z"]))
    ts = START + draw(st.sampled_from([0, 1, 2, 3, HOUR, DAY, DAY + 1, 2 * DAY, 5 * DAY]))
    name = draw(st.sampled_from(["i", "j"]))
    match draw(st.sampled_from(["click", "click", "click", "impression", "bad", "query"])):
        case "click":
            return click(event_id, ts, name, draw(st.integers(0, 2)), item=draw(st.sampled_from([None, "a", "b"])))
        case "impression":
            items = draw(st.sampled_from([["a"], ["b"], ["a", "b"]]))
            return impression(f"{name}{draw(st.integers(0, 4))}", ts, name, items)
        case "query":
            return query(f"q{draw(st.integers(0, 2))}", ts)
        case _:
            return f'{{"type":"click","event_id":"{event_id}"}}'.encode()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.one_of(
        st.tuples(difficult_logs(), st.sampled_from([KEEP_ALL, SHORT])),
        st.tuples(contested_logs(), st.sampled_from([KEEP_ALL, WEEK])),
    ),
    seed=st.integers(0, 2**32),
    batch=st.integers(1, 30),
    ended=st.booleans(),
)
def test_the_recount_equals_the_store(case: tuple[list[bytes], CountingRules], seed: int, batch: int, ended: bool) -> None:
    log, rules = case
    chance = random.Random(seed)
    delivered = log + chance.choices(log, k=len(log) // 2)
    chance.shuffle(delivered)
    with TemporaryDirectory() as folder:
        shard = Shard.open(Path(folder) / "shard.duckdb", rules)
        feed(shard, delivered, batch)
        if ended:
            shard.finish(NOW)
        assert_equal(verify(shard, delivered, ended=ended))
        shard.close()


def count(log: list[bytes], batch: int = 10_000) -> ShardTotals:
    """The account of a shard that keeps all, once the recount has agreed with it."""
    with TemporaryDirectory() as folder:
        shard = Shard.open(Path(folder) / "shard.duckdb", KEEP_ALL)
        feed(shard, log, batch)
        assert_equal(verify(shard, log))
        shard.close()
        return shard.totals()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_click_refused_beside_another_version_for_the_same_reason_counts_once_its_impression_is_replaced(batch: int) -> None:
    log = [
        click("x", START, "i", 1),
        impression("j0", START + 1, "j", ["a"]),
        impression("i0", START, "i", ["a"]),
        click("x", START + 10, "j", 1),
        impression("j1", START, "j", ["a", "b"]),
    ]
    totals = count(log, batch)
    assert (totals.counted, totals.quarantined) == (3, {})


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_versions_of_one_click_refused_for_the_same_reason_are_distinguished_when_one_impression_is_replaced(batch: int) -> None:
    log = [
        click("x", START, "i", 1),
        impression("j0", START + 1, "j", ["a"]),
        impression("i0", START, "i", ["a"]),
        click("x", START + DAY + 1, "j", 1),
        impression("j1", START, "j", ["a"]),
    ]
    totals = count(log, batch)
    assert totals.quarantined == {"position_out_of_range": 1, "late_click": 1}


@pytest.mark.parametrize("turn", [1, -1])
def test_a_version_that_counts_withdraws_the_other_one_that_is_re_attributed_with_it(turn: int) -> None:
    versions = [click("x", START + 2, "j", 1), click("x", START + 2, "j", 0, item="b")][::turn]
    log = [impression("j0", START + 1, "j", ["a"]), *versions, impression("j1", START, "j", ["b"])]
    totals = count(log, 1)
    assert (totals.counted, totals.duplicates, totals.quarantined) == (2, 2, {})


def test_what_is_before_a_refused_line_does_not_withdraw_it_later() -> None:
    log = [
        click("y", START + DAY + 1, "i", 0),
        impression("i0", START + 1, "i", ["a"]),
        impression("i1", START, "i", ["a"]),
        b'{"type":"click","event_id":"y"}',
    ]
    totals = count(log)
    assert totals.quarantined == {"late_click": 1, "invalid": 1}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(log=difficult_logs())
def test_the_recount_equals_plain_python(log: list[bytes]) -> None:
    expected = recount(log)
    with duckdb.connect(":memory:") as con:
        account, windows, pairs = recounted(con, log)
    as_of = TODAY + timedelta(days=14)
    cells: dict[tuple[Any, ...], list[int]] = defaultdict(lambda: [0, 0])
    for one, *cell, shown, clicked in windows:
        if one < as_of:
            cells[tuple(cell)] = [total + number for total, number in zip(cells[tuple(cell)], (shown, clicked), strict=True)]
    assert sorted((*cell, *numbers) for cell, numbers in cells.items()) == expected.windows(as_of)
    assert sorted(pairs) == sorted((*pair, number) for pair, number in Counter(one[:3] for one in expected.pairs).items())
    assert account.pop("counted") == expected.counted
    assert set(+account) == {reason for _, reason in expected.quarantined}
    del account["malformed"], expected.quarantined[None, "malformed"]
    assert +account == Counter(reason for _, reason in expected.quarantined)


def recounted(con: duckdb.DuckDBPyConnection, log: Sequence[bytes]) -> tuple[Counter[str], list[Any], list[Any]]:
    """Return a log's account, windows by day and pairs by day."""
    con.execute(arrivals.TABLES)
    rows = Arrivals(con, KEEP_ALL, DEFAULT_LIMITS, NOW_US)
    rows.load((number, None, value) for number, value in enumerate(log))
    account = recount_queries.recount(con, KEEP_ALL, rows.latest_us or 0, ended=True)
    days = recount_queries.recounted_days(con)
    windows = [(one, *cell) for one in days for cell in con.execute(recount_queries.WINDOWS, {"day": one}).fetchall()]
    return account, windows, con.execute("FROM pairs").fetchall()


LOG = [
    query("q1", START, "red shoes"),
    impression("e1", START + 1, "i", ["a", "b"]),
    click("c1", START + 2, "i", 1),
    query("q2", START + 60, "blue shoes"),
    impression("e2", START + DAY, "j", ["a"]),
    b"{",
]

CHANGES = {
    "INSERT INTO window_deltas VALUES ($day, 'q', 'a', 0, 1, 0)": ("window", "a", [2, 0], [1, 0]),
    "INSERT INTO window_deltas VALUES ($day, 'q', 'b', 1, 0, -1)": ("window", "b", [1, 0], [1, 1]),
    "INSERT INTO window_deltas VALUES ($day, 'q', 'new', 0, 0, 1)": ("window", "new", [0, 1], [0, 0]),
    "DELETE FROM window_deltas WHERE day = $day AND item_norm = 'b'": ("window", "b", [0, 0], [1, 1]),
    "UPDATE window_deltas SET item_norm = 'c' WHERE day = $day AND item_norm = 'a'": None,
    "UPDATE cooccurrence_deltas SET count = 2 WHERE day = $day": ("cooccurrence", "blue shoes", [2], [1]),
    "DELETE FROM cooccurrence_deltas WHERE day = $day": ("cooccurrence", "blue shoes", [0], [1]),
}


@pytest.mark.parametrize("sql", CHANGES)
def test_exactly_the_changed_key_is_named(shard: Shard, sql: str) -> None:
    feed(shard, LOG)
    assert_equal(verify(shard, LOG))
    roll_up_all(shard)
    assert_equal(verify(shard, LOG))
    shard.reader().execute(sql, {"day": TODAY})
    verdict = verify(shard, LOG)
    found = [(row["kind"], row["other"], row["live"], row["recounted"], row["day"]) for row in verdict.differences.to_pylist()]
    wanted = CHANGES[sql]
    assert found == (
        [(*wanted, TODAY)] if wanted else [("window", "a", [0, 0], [1, 0], TODAY), ("window", "c", [1, 0], [0, 0], TODAY)]
    )
    assert not verdict.account and not verdict.equal


def test_a_list_that_is_missing_is_named_by_its_items(shard: Shard) -> None:
    feed(shard, LOG)
    shard.reader().execute("DELETE FROM impressions WHERE impression_id = 'i'")
    found = [(row["other"], row["live"], row["recounted"]) for row in verify(shard, LOG).differences.to_pylist()]
    assert found == [("a", [0, 0], [1, 0]), ("b", [0, 1], [1, 1])]


@pytest.mark.parametrize(
    ("column", "names"),
    [("events", {"events", "duplicates"}), ("counted", {"counted"}), ("duplicates", {"duplicates"})],
)
def test_a_wrong_account_is_a_difference(shard: Shard, column: str, names: set[str]) -> None:
    feed(shard, LOG)
    shard.reader().execute(f"UPDATE state SET {column} = {column} - 1")
    verdict = verify(shard, LOG)
    assert not len(verdict.differences)
    assert column in verdict.account and set(verdict.account) <= names


def test_a_lost_event_and_one_too_many_are_differences(shard: Shard) -> None:
    feed(shard, LOG)
    assert verify(shard, [*LOG, query("q3", START + 70, "green")]).account["events"] == (6, 7)
    assert verify(shard, LOG[:5]).account["events"] == (6, 5)


def test_a_shard_is_compared_at_its_own_offset_while_the_log_goes_on(shard: Shard) -> None:
    feed(shard, LOG[:3])
    counts = read_counts(dump_counts(shard))
    feed(shard, LOG[3:], start=3)
    assert (counts.next_offset, read_counts(dump_counts(shard)).next_offset) == (3, 6)


def test_what_the_clock_refused_stays_refused(shard: Shard) -> None:
    early = query("early", NOW + 2 * DAY, "red")
    feed(shard, [early, *LOG])
    with TemporaryDirectory() as folder:
        log = Log((number, None, value) for number, value in enumerate([early, *LOG]))
        counts = read_counts(dump_counts(shard))
        later = NOW_US + 10 * DAY * 10**6
        assert_equal(verify_shard(0, counts, log, DEFAULT_LIMITS, Path(folder), later))


def test_an_event_that_is_not_ahead_of_its_record_is_not_future_whatever_the_shard_says(shard: Shard) -> None:
    feed(shard, LOG)
    shard.reader().execute("INSERT INTO quarantine (reason, event_id, raw) VALUES ('future_event', 'q2', 'x'::BLOB)")
    with TemporaryDirectory() as folder:
        log = Log((number, round(START * 1e6), value) for number, value in enumerate(LOG))
        assert_equal(verify_shard(0, read_counts(dump_counts(shard)), log, DEFAULT_LIMITS, Path(folder), NOW_US))


def test_days_that_the_log_no_longer_covers_are_left_out(shard: Shard) -> None:
    feed(shard, LOG)
    verdict = verify(shard, LOG[4:], removed_until_us=round((START + 120) * 1e6))
    assert verdict.equal and not verdict.complete
    assert (verdict.left_out, verdict.days) == ({TODAY: UNCOVERED}, [TODAY + timedelta(days=1)])


def test_a_topic_that_was_created_anew_is_not_compared(shard: Shard) -> None:
    feed(shard, LOG)
    shard.apply(decode_columns(enumerate(LOG[:2])), topic_id="another", first_offset=0, next_offset=2, now=NOW)
    verdict = verify(shard, LOG[:2])
    assert verdict.equal and not verdict.complete
    assert "created anew" in verdict.doubts[0]


def test_days_that_the_shard_has_expired_are_left_out_and_the_rest_is_complete(shard: Shard) -> None:
    held = [impression("late", START + 80 * DAY, "k", ["a"])]
    log = [*LOG, *held]
    feed(shard, log)
    roll_up_all(shard)
    for table in ("window_deltas", "cooccurrence_deltas"):
        shard.reader().execute(f"DELETE FROM {table} WHERE day = ?", [TODAY])
    verdict = verify(shard, log)
    assert verdict.equal and verdict.complete
    assert verdict.left_out == {TODAY: EXPIRED}
    assert verdict.days == [TODAY + timedelta(days=1), day(START + 80 * DAY)]


def test_a_shard_that_does_not_exist_has_counted_nothing() -> None:
    with TemporaryDirectory() as folder:
        assert_equal(verify_shard(0, empty_counts(KEEP_ALL), Log([]), DEFAULT_LIMITS, Path(folder), NOW_US))


def test_counts_are_the_same_after_serialising(shard: Shard) -> None:
    feed(shard, LOG)
    shard.mark_exported(TODAY)
    counts: Counts = read_counts(dump_counts(shard))
    totals = shard.totals()
    for name in ("topic_id", "next_offset", "latest_us", "events", "counted", "duplicates", "pending", "quarantined"):
        assert getattr(counts, name) == getattr(totals, name)
    assert (counts.rules, counts.exported) == (CountingRules(), [TODAY])
    assert counts.windows.sort_by([("day", "ascending"), ("item_norm", "ascending")]).to_pylist()[1] == {
        "day": TODAY,
        "query_norm": "q",
        "item_norm": "b",
        "position": 1,
        "impressions": 1,
        "clicks": 1,
    }


@pytest.mark.parametrize("dumped", [b"", b"not arrow", b"\xff\xff\xff\xff\x00\x00\x00\x00"])
def test_other_bytes_are_no_counts(dumped: bytes) -> None:
    with pytest.raises(CountsError):
        read_counts(dumped)
