"""The generated log: its rates, its determinism, and that each line's expected outcome is what an independent recount finds."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from queryloop.torture.expected_counts import differences, expected_counts, reported_counts
from queryloop.torture.generated_log import (
    AGAIN,
    COUNTED,
    LATE_STAGES,
    MIN_EVENTS,
    ORPHAN,
    REPEATED,
    SECOND,
    START_US,
    Line,
    TortureLog,
)
from streams.events.line_decoder import parse_line
from streams.events.rules import DAY_US, CountingRules
from streams.events.schema import Click, Event, Impression, Reason, Reject
from streams.store.shard import Shard
from tests.support.logs import day, feed, rows
from tests.support.recount import recount

EVENTS = 20_000


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return list(TortureLog(7, EVENTS, 2))


@pytest.fixture(scope="module")
def parsed(lines: list[Line]) -> list[Event | Reject]:
    now = time.time()
    return [parse_line(line.line, now=now) for line in lines]


@pytest.mark.parametrize("events", [MIN_EVENTS, 3_001, EVENTS])
@pytest.mark.parametrize("producers", [1, 2, 3])
def test_a_log_has_exactly_as_many_lines_as_asked(events: int, producers: int) -> None:
    assert sum(1 for _ in TortureLog(1, events, producers)) == events


def test_the_same_seed_makes_the_same_log_and_another_seed_another_one(lines: list[Line]) -> None:
    assert list(TortureLog(7, EVENTS, 2)) == lines
    other = {line.line for line in TortureLog(8, EVENTS, 2)}
    assert not other & {line.line for line in lines}


def test_any_stage_can_be_made_by_itself(lines: list[Line]) -> None:
    made = TortureLog(7, EVENTS, 2)
    stage = made.stage_lines(1, 25)
    assert len(stage) == made.sent_before(1, 26) - made.sent_before(1, 25)
    assert set(stage) <= set(lines)


def test_the_rates_are_as_documented(lines: list[Line], parsed: list[Event | Reject]) -> None:
    fates = Counter(line.outcome for line in lines)
    clicks = sum(isinstance(event, Click) for event in parsed)
    assert fates[AGAIN] / EVENTS == pytest.approx(0.05, abs=0.001)
    bad = sum(isinstance(event, Reject) for line, event in zip(lines, parsed, strict=True) if line.outcome != AGAIN)
    assert bad / EVENTS == pytest.approx(0.01, abs=0.001)
    late = fates[Reason.LATE_CLICK] + sum(line.outcome == COUNTED and b"-late-" in line.line for line in lines)
    assert late / clicks == pytest.approx(0.02, abs=0.003)
    displaced = sum(
        abs(line.order_us - event.ts_us) >= SECOND
        for line, event in zip(lines, parsed, strict=True)
        if not isinstance(event, Reject)
    )
    assert displaced / EVENTS == pytest.approx(0.10 + 0.05, abs=0.015), "a tenth out of order, and the duplicates"


def test_some_clicks_are_sent_before_their_impression(lines: list[Line], parsed: list[Event | Reject]) -> None:
    shown = {event.impression_id: number for number, event in enumerate(parsed) if isinstance(event, Impression)}
    early = [n for n, event in enumerate(parsed) if isinstance(event, Click) and shown.get(event.impression_id, n) > n]
    assert len(early) > 100


def test_duplicates_come_soon_and_up_to_two_days_later(lines: list[Line]) -> None:
    first: dict[bytes, int] = {}
    gaps = []
    for line in lines:
        if line.outcome == AGAIN and line.line in first:
            gaps.append((line.order_us - first[line.line]) / DAY_US)
        first.setdefault(line.line, line.order_us)
    assert min(gaps) < 0.001
    assert 1.5 < max(gaps) <= LATE_STAGES / 10 + 0.2


def test_lines_have_every_form(lines: list[Line], parsed: list[Event | Reject]) -> None:
    text = b"\n".join(line.line for line in lines)
    for form in (b'"ts":17366', b'"ts":"2025-01-1', b"+05:30", b"-08:00", b'Z"', "東京".encode(), b"\\u6771", b"\xff\xfe"):
        assert form in text, form
    reasons = {event.reason for event in parsed if isinstance(event, Reject)}
    assert reasons == {Reason.MALFORMED, Reason.INVALID, Reason.TOO_LARGE, Reason.FUTURE_EVENT}


def test_the_decoder_finds_the_expected_outcome_of_each_line(lines: list[Line], parsed: list[Event | Reject]) -> None:
    for line, event in zip(lines, parsed, strict=True):
        refused = event.reason if isinstance(event, Reject) else None
        at_once = {Reason.MALFORMED, Reason.INVALID, Reason.TOO_LARGE, Reason.FUTURE_EVENT}
        if line.outcome != AGAIN:
            assert (refused == line.outcome) if line.outcome in at_once else refused is None, line


def test_a_stage_lasts_a_tenth_of_a_day_and_a_full_log_twenty_days() -> None:
    made = TortureLog(0, 500_000, 2)
    assert made.stages == 200
    first, last = made.stage_lines(0, 0), made.stage_lines(0, 199)
    assert first[0].order_us >= START_US - DAY_US // 10
    assert 19 < (last[-1].order_us - START_US) / DAY_US < 20.2


def test_expected_counts_and_the_recount_agree_with_a_shard(tmp_path: Path) -> None:
    """Every line through one shard: its counts are the expected ones, its tables those of the recount."""
    few = list(TortureLog(11, 4_000, 2))
    shard = Shard.open(tmp_path / "s.duckdb", CountingRules(retention_days=16))
    feed(shard, [line.line for line in few], batch=700, now=time.time())
    assert differences(expected_counts(few, 1), reported_counts({0: asdict(shard.totals())})) == []
    now = time.time()
    oracle = recount(line.line for line in few if not isinstance(parse_line(line.line, now=now), Reject))
    days = {day(line.order_us / 1e6 + ahead * 86_400) for line in few for ahead in (0, 1)}
    for as_of in days:
        assert rows(shard.windows(as_of)) == oracle.windows(as_of)
        assert rows(shard.cooccurrence(as_of)) == oracle.cooccurrence(as_of)
    assert len(days) == 5
    shard.close()
    assert {ORPHAN, REPEATED} <= {line.outcome for line in few}
