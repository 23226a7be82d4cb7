"""Quarantine stores each bad event once, with its reason and bytes, and affects nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from streams.counting import quarantine
from streams.events.batch_decoder import decode_columns
from streams.store.shard import CountingRules, Shard
from tests.support.logs import NOW, START, click, day, feed, impression, query, rows

JUNK = b"\x00\xff\xfe <script>'; DROP TABLE quarantine; --"


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


def test_a_bad_event_has_one_row_however_often_it_is_delivered(shard: Shard) -> None:
    without_session = b'{"type":"query","event_id":"e9","ts":1.0,"query":"q"}'
    log = [JUNK, without_session, JUNK, query("e1", START)]
    feed(shard, log, batch=2)
    feed(shard, log, start=4)
    found = [(row["event_id"], row["reason"], row["raw"], row["log_offset"]) for row in shard.quarantine().to_pylist()]
    assert found == [(None, "malformed", JUNK, 0), ("e9", "invalid", without_session, 1)]
    totals = shard.totals()
    assert (totals.events, totals.counted, totals.duplicates) == (8, 1, 5)
    assert totals.quarantined == {"invalid": 1, "malformed": 1}


def test_a_bad_event_has_one_row_after_a_restart_too(tmp_path: Path) -> None:
    log = [JUNK, b'{"type":"query","event_id":"e9","ts":1.0,"query":"q"}']
    for start, number in ((0, 2), (2, 2), (4, 3)):
        shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
        feed(shard, log if start < 4 else [*log, b"{"], start=start)
        assert len(shard.quarantine()) == number
        shard.close()


def test_a_reject_with_a_new_key_is_added_without_reading_the_quarantine(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "ADD_UNLESS_STORED", "SELECT 'read', '', 'malformed', hash($arrived)")
    feed(shard, [JUNK])
    feed(shard, [b"{"], start=1)
    assert shard.totals().quarantined == {"malformed": 2}
    feed(shard, [JUNK], start=2)
    assert shard.totals().quarantined == {"malformed": 3}


def test_a_bad_event_among_good_ones_affects_nothing_else(shard: Shard) -> None:
    records = [
        (0, b"\n".join([impression("e1", START), JUNK, click("e2", START + 1), b'{"type":"click"}'])),
        (1, b"\x89PNG\r\n\x1a\n"),
    ]
    shard.apply(decode_columns(records, now=NOW), topic_id="t", first_offset=0, next_offset=2, now=NOW)
    assert rows(shard.windows(day(START) + timedelta(days=1)))[0] == ("q", "a", 0, 1, 1)
    assert [(row["log_offset"], row["line"]) for row in shard.quarantine().to_pylist()[:2]] == [(0, 1), (0, 3)]


def test_a_repaired_event_with_the_same_id_counts(shard: Shard) -> None:
    feed(shard, [b'{"type":"query","event_id":"e1","ts":1.0,"session_id":"s"}', query("e1", START)])
    assert (shard.totals().counted, shard.totals().duplicates, shard.totals().quarantined) == (1, 1, {})
    assert len(shard.quarantine()) == 0


@pytest.mark.parametrize("session", ["", '"session_id":"t",'])
def test_an_event_of_another_session_or_of_none_repairs_nothing(shard: Shard, session: str) -> None:
    """Whether both are in one shard depends on the number of partitions."""
    feed(shard, [f'{{"type":"query",{session}"event_id":"e1","ts":1.0}}'.encode(), query("e1", START)])
    assert (shard.totals().counted, shard.totals().duplicates, shard.totals().quarantined) == (1, 0, {"invalid": 1})


def test_rows_are_published_once(shard: Shard) -> None:
    feed(shard, [JUNK, b"{"])
    waiting = shard.unpublished(limit=1).to_pylist()
    assert [row["raw"] for row in waiting] == [JUNK]
    shard.mark_published([row["id"] for row in waiting])
    assert [row["raw"] for row in shard.unpublished().to_pylist()] == [b"{"]
    assert shard.quarantine()["published"].to_pylist() == [True, False]


def test_published_rows_are_deleted_after_the_retention_and_stay_in_the_totals(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=30))
    feed(shard, [query("e1", START), JUNK, b"{"])
    shard.mark_published([shard.unpublished()["id"][0].as_py()])
    shard.mark_exported(day(START))
    feed(shard, [query("e2", START + 60 * 86_400)], start=3)
    shard.maintain(60)
    assert shard.quarantine()["raw"].to_pylist() == [b"{"]
    assert shard.totals().quarantined == {"malformed": 2}
    shard.close()
