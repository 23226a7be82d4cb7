"""Erasure: a shard is as if the erased session or user had never been there, and their events stay out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queryloop.verify.shard_verification import Log, rows, verify_shard
from streams.api.snapshot import dump_counts, read_counts
from streams.events.erasures import Subject, Tombstones, hash_id
from streams.events.schema import DEFAULT_LIMITS, Reason
from streams.store.shard import CountingRules, Shard
from tests.support.logs import NOW, START, click, day, dirty_days, feed, impression, query
from tests.support.logs import rows as table_rows

DAY = 86_400.0
KEY = b"k" * 32
KEEP_ALL = CountingRules(retention_days=0)
AFTER = day(START) + timedelta(days=1)
SESSION = Subject("session", "sess-1")


def tombstones(subject: Subject) -> Tombstones:
    """The tombstones of one erasure."""
    digest = hash_id(KEY, subject.kind, subject.id)
    if subject.kind == "session":
        return Tombstones(KEY, frozenset([digest]))
    return Tombstones(KEY, users={digest: subject.until_us})


def erase(shard: Shard, subject: Subject) -> dict[str, int]:
    """Erase as a worker does: the tombstone first."""
    shard.tombstones = tombstones(subject)
    return shard.erase(subject).rows


def contents(shard: Shard) -> str:
    """Every value of every table as one text."""
    shard.write()
    with shard.reader() as con:
        tables = [name for (name,) in con.execute("SELECT table_name FROM duckdb_tables() WHERE NOT temporary").fetchall()]
        return repr([con.execute(f"FROM {name}").fetchall() for name in tables])


def assert_verified(shard: Shard, log: Sequence[bytes], subject: Subject) -> None:
    """The recount of the whole log that knows of the erasure finds no difference."""
    with TemporaryDirectory() as folder:
        source = Log((number, None, value) for number, value in enumerate(log))
        counts = read_counts(dump_counts(shard))
        verdict = verify_shard(0, counts, source, DEFAULT_LIMITS, Path(folder), round(NOW * 1e6), tombstones(subject))
    assert (list(rows(verdict.differences)), verdict.account) == ([], {})


def visit(session: str, user: str | None = None, start: float = START) -> list[bytes]:
    """What one session leaves: two queries, a list with a click, a click that waits, a click that is refused, a bad line."""
    whose: dict[str, Any] = {"session_id": session, "user_id": user}
    return [
        query(f"{session}-q1", start, f"private {session}", **whose),
        query(f"{session}-q2", start + 5, "shoes", **whose),
        impression(f"{session}-e", start + 6, f"{session}-i", ["a", "b"], query="shoes", **whose),
        click(f"{session}-c", start + 7, f"{session}-i", 1, query="shoes", **whose),
        click(f"{session}-w", start + 7, f"{session}-later", 0, query="shoes", **whose),
        click(f"{session}-r", start + 7, f"{session}-i", 9, query="shoes", **whose),
        json.dumps({"type": "query", "event_id": f"{session}-bad", "ts": start, "query": "", **whose}).encode(),
        f'{{"type":"query","session_id":"{session}","user_id":"{user}", broken'.encode(),
    ]


@pytest.fixture
def shard(tmp_path: Path) -> Any:
    opened = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    yield opened
    opened.close()


def test_an_erased_session_leaves_no_row_and_no_count(shard: Shard) -> None:
    log = visit("sess-1") + visit("sess-2")
    feed(shard, log, batch=3)
    shard.mark_exported(day(START))
    removed = erase(shard, SESSION)
    assert removed == {"clicks": 2, "impressions": 1, "pending": 1, "quarantine": 3, "queries": 2, "seen": 6}
    assert "sess-1" not in contents(shard) and "sess-2" in contents(shard)
    assert table_rows(shard.windows(AFTER)) == [("shoes", "a", 0, 1, 0), ("shoes", "b", 1, 1, 1)]
    assert table_rows(shard.cooccurrence(AFTER)) == [("private sess-2", "shoes", 1)]
    assert (shard.totals().erased, shard.totals().counted) == (8, 4)
    assert dirty_days(shard) == [day(START)]
    assert_verified(shard, log, SESSION)


def test_events_of_an_erased_session_that_are_delivered_again_or_later_are_dropped_and_counted(shard: Shard) -> None:
    log = visit("sess-1") + visit("sess-2")
    feed(shard, log)
    erase(shard, SESSION)
    before = shard.totals()
    more = [*visit("sess-1"), query("new", START + 900, "hello", session_id="sess-1")]
    feed(shard, more, start=len(log))
    assert shard.totals().erased == before.erased + len(more)
    assert shard.totals().counted == before.counted
    assert "sess-1" not in contents(shard)
    assert_verified(shard, log + more, SESSION)


def test_a_user_is_erased_up_to_the_time_of_the_erasure_and_counted_again_after_it(shard: Shard) -> None:
    subject = Subject("user", "u-1", round((START + 100) * 1e6))
    log = visit("a", "u-1") + visit("b", "u-2") + visit("c", "u-1", START + 200)
    feed(shard, log)
    erase(shard, subject)
    assert "private a" not in contents(shard) and "private c" in contents(shard)
    assert_verified(shard, log, subject)


def test_a_click_of_someone_else_on_an_erased_list_waits_again(shard: Shard) -> None:
    subject = Subject("user", "u-1")
    log = [impression("e", START, "i", ["a"], user_id="u-1"), click("c", START + 1, "i"), query("q", START + 2)]
    feed(shard, log)
    erase(shard, subject)
    assert (shard.totals().pending, table_rows(shard.windows(AFTER))) == (1, [])
    assert_verified(shard, log, subject)


def test_a_position_stays_clicked_by_the_click_of_someone_else(shard: Shard) -> None:
    subject = Subject("user", "u-1")
    log = [impression("e", START, "i", ["a"]), click("c1", START + 1, "i", user_id="u-1"), click("c2", START + 2, "i")]
    feed(shard, log)
    erase(shard, subject)
    assert table_rows(shard.windows(AFTER)) == [("q", "a", 0, 1, 1)]
    assert_verified(shard, log, subject)


def test_an_id_that_is_escaped_in_its_line_is_found(shard: Shard) -> None:
    subject = Subject("session", "é1")
    line = click("c", START, "i", session_id="X").replace(b'"X"', b'"\\u00e91"')
    feed(shard, [line])
    assert erase(shard, subject)["pending"] == 1


def test_what_another_session_calls_by_the_same_ids_stays(shard: Shard) -> None:
    log = [
        made
        for session in ("sess-1", "sess-2")
        for made in (
            query("q", START, "shoes", session_id=session),
            impression("e", START + 1, "i", ["a"], query="shoes", session_id=session),
            click("c", START + 2, "i", session_id=session),
            click("bad", START + 2, "i", 9, session_id=session),
        )
    ]
    feed(shard, log)
    assert erase(shard, SESSION) == {"clicks": 2, "impressions": 1, "pending": 0, "quarantine": 1, "queries": 1, "seen": 4}
    assert table_rows(shard.windows(AFTER)) == [("shoes", "a", 0, 1, 1)]
    feed(shard, log, start=len(log))
    assert (shard.totals().counted, shard.totals().quarantined) == (3, {"position_out_of_range": 1})
    assert_verified(shard, log * 2, SESSION)


def test_a_quarantined_event_whose_bytes_were_dropped_goes_with_its_session(shard: Shard) -> None:
    feed(shard, visit("sess-1"))
    shard.drop_quarantined(Reason.INVALID, None)
    assert erase(shard, SESSION)["quarantine"] == 3
    assert "sess-1" not in contents(shard)


def test_a_dry_run_counts_the_same_rows_and_changes_nothing(shard: Shard) -> None:
    feed(shard, visit("sess-1") + visit("sess-2"))
    before = contents(shard), shard.totals()
    counted = shard.erase(SESSION, dry_run=True).rows
    assert (contents(shard), shard.totals()) == before
    assert counted == erase(shard, SESSION)


def test_erasing_again_finds_nothing(shard: Shard) -> None:
    feed(shard, visit("sess-1"))
    erase(shard, SESSION)
    totals = shard.totals()
    assert set(erase(shard, SESSION).values()) == {0}
    assert shard.totals() == totals


@st.composite
def visited_logs(draw: st.DrawFn) -> list[bytes]:
    """Logs of three sessions and two users, who share sessions, with clicks on lists of others and refused ones."""
    return [draw(_events(number)) for number in range(draw(st.integers(1, 40)))]


@st.composite
def _events(draw: st.DrawFn, number: int) -> bytes:
    ts = START + draw(st.sampled_from([0, 1, 2, 3, 5, 8, 1800, DAY, 2 * DAY]))
    session = draw(st.sampled_from(["sess-1", "sess-2", "sess-3"]))
    whose = {"session_id": session, "user_id": draw(st.sampled_from([None, "u-1", "u-2"]))}
    shown = draw(st.integers(0, 5))
    match draw(st.sampled_from(["impression", "click", "click", "query", "query", "bad"])):
        case "impression":
            text = draw(st.sampled_from(["red", "blue"]))
            return impression(f"e{number}", ts, f"i{number}" if shown == 5 else f"i{shown}", ["a", "b"], query=text, **whose)
        case "click":
            return click(f"e{number}", ts, f"i{shown}", draw(st.integers(0, 2)), **whose)
        case "query":
            return query(f"e{number}", ts, draw(st.sampled_from(["red", "blue", "green"])), **whose)
        case _:
            return json.dumps({"type": "query", "event_id": f"e{number}", "ts": ts, **whose}).encode()


def _first_lists(log: list[bytes]) -> list[bytes]:
    """The log with one list of each impression_id: which of several versions counts depends on who is erased."""
    kept, shown = [], set()
    for line in log:
        event = json.loads(line)
        if event["type"] == "impression" and event["impression_id"] in shown:
            continue
        shown.add(event.get("impression_id") if event["type"] == "impression" else None)
        kept.append(line)
    return kept


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    log=visited_logs().map(_first_lists),
    subject=st.sampled_from([SESSION, Subject("user", "u-1"), Subject("user", "u-1", round((START + 4) * 1e6))]),
    rules=st.sampled_from([KEEP_ALL, CountingRules(retention_days=7), replace(KEEP_ALL, session_cap=1, user_cap=2)]),
    at=st.floats(0, 1),
    batch=st.integers(1, 20),
)
def test_a_shard_that_erased_equals_the_recount_of_its_log_whenever_it_erased(
    log: list[bytes], subject: Subject, rules: CountingRules, at: float, batch: int
) -> None:
    before = round(at * len(log))
    with TemporaryDirectory() as folder:
        shard = Shard.open(Path(folder) / "shard.duckdb", rules)
        feed(shard, log[:before], batch)
        erase(shard, subject)
        feed(shard, log[before:], batch, start=before)
        assert_verified(shard, log, subject)
        shard.close()
