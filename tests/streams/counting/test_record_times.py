"""The time of a shard moves by the earlier of an event's own time and its record's, so one wrong clock moves nobody's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from streams.counting.record_times import NO_TIMES, RecordTimes
from streams.events.batch_decoder import decode_columns
from streams.store.shard import CountingRules, Shard
from tests.support.logs import HOUR, START, click, day, impression, query, rows

DAY = 24 * HOUR


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=2))
    yield opened
    opened.close()


def receive(shard: Shard, lines: Sequence[bytes], recorded: float | None, now: float = START, start: int = 0) -> None:
    """Apply lines, each a record of its own that Kafka got at `recorded` (None: without a time)."""
    offsets = np.arange(start, start + len(lines))
    times = RecordTimes(offsets, np.full(len(lines), -1 if recorded is None else round(recorded * 1e6)))
    records = list(zip(offsets.tolist(), lines, strict=True))
    end = start + len(lines)
    shard.apply(decode_columns(records), topic_id="t", first_offset=start, next_offset=end, now=now, record_times=times)


WAITS, AHEAD = click("c", START, "i"), query("ahead", START + DAY - 1, session_id="other")
SHOWN = impression("shown", START - 5, "i")


@pytest.mark.parametrize("one_batch", [False, True])
def test_an_event_whose_clock_is_ahead_does_not_end_the_waiting_of_the_others(shard: Shard, one_batch: bool) -> None:
    early = click("early", START - 3, "i", position=1)
    log = [WAITS, early, query("further", START + DAY - 1, session_id="x"), AHEAD, SHOWN]
    if one_batch:
        receive(shard, log, START)
    else:
        for number, line in enumerate(log):
            receive(shard, [line], START, start=number)
    assert (shard.totals().counted, shard.totals().quarantined, shard.totals().latest_us) == (5, {}, round(START * 1e6))
    assert [clicks for *_, clicks in rows(shard.windows(day(START + DAY)))] == [1, 1]


@pytest.mark.parametrize("recorded", [None, START + 300 * DAY])
def test_a_replayed_log_goes_by_event_time(shard: Shard, recorded: float | None) -> None:
    for number, line in enumerate([WAITS, query("later", START + DAY + 1), SHOWN]):
        receive(shard, [line], recorded, now=START + 300 * DAY, start=number)
    assert shard.totals().latest_us == round((START + DAY + 1) * 1e6)
    assert shard.totals().quarantined == {"orphan_click": 1}


def test_an_event_whose_clock_is_ahead_makes_no_other_too_old(shard: Shard) -> None:
    receive(shard, [AHEAD, query("old", START - 2 * DAY + 1)], START)
    receive(shard, [query("older", START - 2 * DAY - 1)], START, start=2)
    assert (shard.totals().counted, shard.totals().quarantined) == (2, {"too_old": 1})


def test_the_time_of_the_shard_survives_a_restart(shard: Shard, tmp_path: Path) -> None:
    receive(shard, [AHEAD], START)
    shard.close()
    again = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=2))
    assert again.totals().latest_us == round(START * 1e6)
    again.close()


def test_each_event_has_the_time_of_its_own_record() -> None:
    times = RecordTimes(np.array([3, 5, 9]), np.array([100, -1, 50]))
    offsets, ts_us = np.array([3, 3, 5, 9, 9, 7]), np.array([90, 110, 120, 10, 60, 130])
    assert times.earlier(offsets, ts_us).tolist() == [90, 100, 120, 10, 50, 130]
    assert ts_us.tolist() == [90, 110, 120, 10, 60, 130]
    assert NO_TIMES.earlier(offsets, ts_us) is ts_us
