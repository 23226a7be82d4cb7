"""The recount moves the shard's time by the same rule as the shard: the earlier of an event's own time and its record's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from queryloop.verify.shard_verification import Log, Verdict, verify_shard
from streams.api.snapshot import dump_counts, read_counts
from streams.counting.record_times import RecordTimes
from streams.events.batch_decoder import decode_columns
from streams.events.line_decoder import parse_line
from streams.events.rules import CountingRules
from streams.events.schema import BOM, DEFAULT_LIMITS, Reject
from streams.store.shard import Shard
from tests.support.logs import HOUR, NOW, START, click, difficult_logs, impression, query

Record = tuple[bytes, int]
LATER = st.sampled_from([-20 * HOUR, -HOUR, -1.0, 0.0, 0.5, 50 * HOUR, 300 * 24 * HOUR])


@st.composite
def recorded_logs(draw: st.DrawFn) -> list[Record]:
    """Difficult logs with the time (microseconds) at which Kafka got each line: before its own where its clock is ahead."""
    records = []
    for line in draw(difficult_logs().flatmap(st.permutations)):
        event = parse_line(line)
        ts_us = round(START * 1e6) if isinstance(event, Reject) else event.ts_us
        records.append((line, ts_us + round(draw(LATER) * 1000) * 1000))
    return records


def verify(records: Sequence[Record], batch: int, rules: CountingRules) -> Verdict:
    with TemporaryDirectory() as folder:
        shard = Shard.open(Path(folder) / "shard.duckdb", rules)
        for low in range(0, len(records), batch):
            part = list(enumerate(records))[low : low + batch]
            times = RecordTimes(np.array([number for number, _ in part]), np.array([us for _, (_, us) in part]))
            columns = decode_columns([(number, line) for number, (line, _) in part])
            end = low + len(part)
            shard.apply(columns, topic_id="t", first_offset=low, next_offset=end, now=NOW, record_times=times)
        counts = read_counts(dump_counts(shard))
        shard.close()
        log = Log((number, us, line) for number, (line, us) in enumerate(records))
        return verify_shard(0, counts, log, DEFAULT_LIMITS, Path(folder), round(NOW * 1e6))


@settings(max_examples=12, deadline=None)
@given(records=recorded_logs(), batch=st.integers(1, 8), timed=st.booleans())
def test_the_recount_equals_the_shard_whatever_the_times_of_the_records(records: list[Record], batch: int, timed: bool) -> None:
    found = verify(records, batch, CountingRules(retention_days=3, record_times=timed))
    assert (found.account, found.differences.to_pylist()) == ({}, [])


def test_an_event_ahead_of_its_record_ends_no_waiting_in_the_recount_either() -> None:
    lines = [click("c", START, "i"), query("ahead", START + 25 * HOUR, session_id="x"), impression("i", START - 5, "i")]
    records = [(line, round(START * 1e6)) for line in lines]
    assert verify(records, 1, CountingRules()).equal
    by_event_time = verify(records, 1, CountingRules(record_times=False))
    assert by_event_time.equal and by_event_time.lines == 3


def test_a_byte_order_mark_that_a_producer_puts_before_a_record_counts_for_nothing_in_shard_and_recount() -> None:
    lines = [BOM + impression("i", START), BOM + BOM + click("c", START + 1) + b"\r\n" + BOM + query("q", START), BOM]
    verdict = verify([(line, round(START * 1e6)) for line in lines], 2, CountingRules())
    assert verdict.equal and verdict.lines == 3
