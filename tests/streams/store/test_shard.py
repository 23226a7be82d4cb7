"""A shard counts each event once, in whatever order, repetition and batches, also after it is closed and opened again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.events.batch_decoder import decode_columns
from streams.store.shard import CountingRules, OffsetGap, Shard, ShardTotals, StoreError
from tests.support.logs import DATA, HOUR, NOW, START, click, day, difficult_logs, feed, impression, query, read, real_log, rows
from tests.support.recount import Recount, recount

KEEP_ALL = CountingRules(retention_days=0)
DAYS = [day(START + number * 86_400) for number in (1, 2, 9, 14, 15, 21, 35)]
REAL_LOGS = ["clara2_dev.jsonl.gz", "excite.jsonl.gz", "mimics_duo_dev.jsonl.gz"]


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    yield opened
    opened.close()


def assert_equal_counts(shard: Shard, expected: Recount, days: list[date]) -> None:
    for as_of in days:
        assert rows(shard.windows(as_of)) == expected.windows(as_of), as_of
        assert rows(shard.cooccurrence(as_of)) == expected.cooccurrence(as_of), as_of
    found = [(row["event_id"], row["reason"]) for row in shard.quarantine().to_pylist()]
    assert sorted(set(found), key=repr) == sorted(expected.quarantined, key=repr)


def assert_totals_add_up(totals: ShardTotals, lines: int) -> None:
    assert totals.events == lines
    assert totals.events == totals.counted + totals.duplicates + sum(totals.quarantined.values()) + totals.pending


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(log=difficult_logs(), seed=st.integers(0, 2**32), batch=st.integers(1, 30), restart_at=st.floats(0, 1))
def test_any_order_repetition_batching_and_restart_gives_the_counts_of_the_log(
    log: list[bytes], seed: int, batch: int, restart_at: float
) -> None:
    chance = random.Random(seed)
    delivered = log + chance.choices(log, k=len(log) // 2) if log else []
    chance.shuffle(delivered)
    middle = round(restart_at * len(delivered))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "shard.duckdb"
        shard = Shard.open(path, KEEP_ALL)
        feed(shard, delivered[:middle], batch)
        assert_totals_add_up(shard.totals(), middle)
        before = shard.totals()
        shard.close()
        shard = Shard.open(path, KEEP_ALL)
        assert shard.totals() == before
        feed(shard, delivered[middle:], batch, start=middle)
        shard.finish(NOW)
        assert_totals_add_up(shard.totals(), len(delivered))
        expected = recount(log)
        assert shard.totals().counted == expected.counted
        assert shard.totals().pending == 0
        assert_equal_counts(shard, expected, DAYS)
        shard.close()


@pytest.mark.parametrize(
    ("name", "shuffled"),
    [
        (name, shuffled) if shuffled and name.startswith("excite") else pytest.param(name, shuffled, marks=pytest.mark.full)
        for name in REAL_LOGS
        for shuffled in (True, False)
    ],
)
def test_real_logs_equal_the_recount(shard: Shard, name: str, shuffled: bool) -> None:
    if not (DATA / name).exists():
        pytest.skip("no ../shared/data")
    log = real_log(name)
    delivered = list(log)
    if shuffled:
        chance = random.Random(7)
        delivered += chance.choices(log, k=len(log) // 20)
        chance.shuffle(delivered)
    feed(shard, delivered, 7_001)
    shard.finish(NOW * 2)
    expected = recount(log)
    to_event_days = sorted(
        {day(us / 1e6) for us in (e["us"] for e in expected.impressions.values())} | {one[0] for one in expected.pairs}
    )
    chosen = [*to_event_days[:: max(1, len(to_event_days) // 4)], to_event_days[-1]]
    as_of = [d.fromordinal(d.toordinal() + shift) for d in chosen for shift in (1, 7)]
    assert_equal_counts(shard, expected, as_of)
    assert_totals_add_up(shard.totals(), len(delivered))
    assert any(expected.windows(d) or expected.cooccurrence(d) for d in as_of)


def test_offsets_are_kept_with_the_counts(tmp_path: Path) -> None:
    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, KEEP_ALL)
    assert shard.position() is None
    feed(shard, [query("e1", START), query("e2", START + 1)])
    shard.close()
    again = Shard.open(path, KEEP_ALL)
    assert again.position() == ("t", 2)
    again.close()


def killed(shard: Shard, path: Path) -> Shard:
    """The shard opened again as after kill -9."""
    shard._con.close()
    return Shard.open(path, KEEP_ALL)


def test_after_a_kill_unwritten_batches_are_lost_with_their_offsets_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, KEEP_ALL)
    log = [impression("e1", START), impression("e2", START, "j"), click("e3", START + 1), query("e4", START + 2)]
    feed(shard, log[:1])
    feed(shard, log[1:3], batch=1, start=1, write=False)
    totals = shard.totals()
    assert (totals.counted, totals.next_offset, totals.written_offset, shard.unwritten_events) == (3, 3, 1, 2)
    again = killed(shard, path)
    assert (again.position(), again.totals().counted) == (("t", 1), 1)
    feed(again, log[1:], batch=1, start=1, write=False)
    again.write()
    assert (again.totals().written_offset, again.is_unwritten, again.unwritten_events) == (4, False, 0)
    last = killed(again, path)
    assert (last.position(), last.totals().counted, last.totals().duplicates) == (("t", 4), 4, 0)
    last.close()


def test_a_read_and_close_write_what_was_applied_before(tmp_path: Path) -> None:
    path = tmp_path / "shard.duckdb"
    log = [impression("e1", START), click("e2", START + 1), query("e3", START), query("e4", START + 1)]
    for show in (Shard.unpublished, Shard.quarantine, lambda one: one.windows(DAYS[0]), Shard.close):
        shard = Shard.open(path, KEEP_ALL)
        feed(shard, log, write=False)
        show(shard)
        assert not shard.is_unwritten
        killed(shard, path).close()
        again = Shard.open(path, KEEP_ALL)
        assert len(again.windows(DAYS[0])) == 2
        assert len(read(again, "FROM queries")) == 2
        again.close()
        path.unlink()


def test_pending_clicks_count_whether_or_not_they_are_written(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    feed(shard, [impression("the day's first", START, "x")])
    clicks = [click(f"c{number}", START + 1, f"i{number}") for number in range(4)]
    lists = [impression(f"e{number}", START, f"i{number}") for number in range(4)]
    feed(shard, clicks[:2], start=1)
    feed(shard, clicks[2:], start=3, write=False)
    assert shard.totals().pending == 4
    feed(shard, [lists[0], lists[2]], start=5, write=False)
    assert (shard.totals().pending, shard.totals().counted, shard.is_unwritten) == (2, 5, True)
    assert rows(read(shard, "SELECT event_id FROM pending ORDER BY event_id")) == [("c1",), ("c3",)]
    feed(shard, [lists[1], lists[3]], start=7, write=False)
    assert rows(read(shard, "SELECT event_id FROM pending")) == []
    assert (shard.totals().pending, shard.totals().counted) == (0, 9)
    shard.close()


def test_a_failed_batch_does_not_affect_unwritten_ones_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, KEEP_ALL)
    feed(shard, [impression("e1", START), click("w", START + 1, "later")])
    feed(shard, [click("e2", START + 1), impression("l", START, "later")], start=2, write=False)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for write in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr("streams.store.shard.deduplication.find_split_points", fail)
            with pytest.raises(OSError, match="disk full"):
                feed(shard, [click("e3", START + 1, position=9)], start=4, write=write)
        assert (shard.position(), shard.totals().counted) == (("t", 4), 4)
    shard.write()
    again = killed(shard, path)
    assert (again.position(), again.totals().counted, again.totals().pending) == (("t", 4), 4, 0)
    again.close()


def test_records_applied_before_are_dropped_and_a_gap_is_refused(shard: Shard) -> None:
    log = [query(f"e{number}", START + number) for number in range(6)]
    feed(shard, log[:3])
    applied = shard.apply(
        decode_columns([(number, log[number]) for number in range(1, 5)]), topic_id="t", first_offset=1, next_offset=5, now=NOW
    )
    assert (applied.events, applied.counted, applied.duplicates) == (2, 2, 0)
    with pytest.raises(OffsetGap, match="next offset is 5, records start at 6"):
        feed(shard, log[:1], start=6)
    assert shard.position() == ("t", 5)
    assert shard.totals().events == 5


def test_a_new_topic_id_starts_over_and_duplicates_are_found_by_their_ids(shard: Shard) -> None:
    log = [query(f"e{number}", START + number) for number in range(3)]
    feed(shard, log)
    applied = shard.apply(
        decode_columns([(0, b"\n".join([*log, query("new", START)]))]), topic_id="other", first_offset=0, next_offset=1, now=NOW
    )
    assert (applied.counted, applied.duplicates) == (1, 3)
    assert shard.position() == ("other", 1)
    assert shard.totals().earlier_events == 3
    feed(shard, [query("newer", START)], start=1, topic_id="other")
    assert (shard.totals().events, shard.totals().earlier_events) == (8, 3)


def test_a_failed_batch_changes_nothing(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(shard, [impression("e1", START)])
    before = shard.totals(), rows(shard.windows(DAYS[0]))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("streams.store.shard.retention.mark_days_dirty", fail)
        with pytest.raises(OSError, match="disk full"):
            feed(shard, [click("e2", START + 1), impression("e3", START, "j")], start=1)
    assert (shard.totals(), rows(shard.windows(DAYS[0]))) == before
    feed(shard, [click("e2", START + 1), impression("e3", START, "j")], start=1)
    assert shard.totals().counted == 3
    assert shard.totals().duplicates == 0


def test_an_event_with_the_same_id_is_a_duplicate_even_with_another_time(shard: Shard) -> None:
    feed(shard, [query("e1", START, "first")])
    feed(shard, [query("e1", START + 5 * HOUR, "again")], start=1)
    assert (shard.totals().counted, shard.totals().duplicates) == (1, 1)


def test_an_id_used_again_after_the_retention_is_occupied_though_its_first_version_was_refused(
    tmp_path: Path,
) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=3))
    later = START + 5 * 86_400
    try:
        feed(shard, [click("x", START), click("x", later), query("q", later + 60), click("x", later)], batch=1)
        assert (shard.totals().pending, shard.totals().quarantined) == (1, {"orphan_click": 1})
        feed(shard, [impression("i", later - 1), click("x", later)], batch=1, start=4)
        assert (shard.totals().pending, shard.totals().duplicates, shard.totals().quarantined) == (0, 3, {})
        assert [row[-1] for row in rows(shard.windows(day(later + 86_400)))] == [1, 0]
    finally:
        shard.close()


def test_events_older_than_the_retention_are_too_old_whatever_the_batching(tmp_path: Path) -> None:
    log = [
        query("e1", START),
        query("e2", START + 40 * 86_400),
        query("e3", START + 9.9 * 86_400),
        query("e4", START + 11 * 86_400),
    ]
    for batch in (1, 4):
        shard = Shard.open(tmp_path / f"{batch}.duckdb", CountingRules(retention_days=30))
        feed(shard, log, batch)
        assert [(row["event_id"], row["reason"]) for row in shard.quarantine().to_pylist()] == [("e3", "too_old")]
        assert shard.totals().counted == 3
        assert_totals_add_up(shard.totals(), 4)
        shard.close()


def test_an_event_ahead_of_the_clock_is_refused_and_does_not_move_event_time(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules())
    records = [(0, query("e1", START)), (1, query("e2", START + 30 * 86_400))]
    shard.apply(decode_columns(records), topic_id="t", first_offset=0, next_offset=2, now=START)
    assert shard.totals().quarantined == {"future_event": 1}
    assert shard.totals().latest_us == START * 1e6
    shard.close()


def test_exported_days_are_deleted_after_the_retention_and_others_are_kept(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=30))
    feed(shard, [query("e1", START), impression("e2", START), click("e3", START + 1)])
    feed(shard, [query("e4", START + 60 * 86_400)], start=3)
    assert {one.kind for one in shard.maintain(60)} == {"look"}
    assert read(shard, "SELECT count(*) AS n FROM seen")["n"][0].as_py() == 4
    shard.mark_exported(day(START))
    feed(shard, [query("e5", START + 61 * 86_400)], start=4)
    assert {one.kind for one in shard.maintain(60)} == {"expiry", "compaction", "look"}
    for table, left in {"seen": 2, "queries": 2, "impressions": 0, "clicks": 0, "window_deltas": 0}.items():
        assert read(shard, f"SELECT count(*) AS n FROM {table}")["n"][0].as_py() == left, table
    assert shard.totals().counted == 5
    shard.close()


def test_a_locked_or_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.duckdb"
    foreign.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match=r"foreign\.duckdb"):
        Shard.open(foreign, KEEP_ALL)
    with pytest.raises(StoreError, match=r"absent\.duckdb"):
        Shard.open(tmp_path / "absent.duckdb", KEEP_ALL, read_only=True)


def test_keys_are_recomputed_when_duckdb_has_another_hash_function(tmp_path: Path) -> None:
    import duckdb

    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, KEEP_ALL)
    log = [
        impression("e1", START),
        click("e2", START + 1),
        query("e3", START, "x"),
        query("e4", START + 2, "y"),
        click("e5", START, "k"),
    ]
    feed(shard, log)
    shard.close()
    with duckdb.connect(str(path)) as con:
        con.execute("UPDATE state SET hash_probe = 1; UPDATE seen SET key = 1; UPDATE impressions SET key = 1;")
        con.execute("UPDATE clicks SET key = 1; UPDATE pending SET key = 1; UPDATE queries SET session_key = 1")
    shard = Shard.open(path, KEEP_ALL)
    more = [*log, click("e6", START + 3), impression("e7", START, "k"), query("e8", START + 1, "z")]
    feed(shard, more, start=5)
    assert_equal_counts(shard, recount(more), DAYS)
    assert (shard.totals().duplicates, shard.totals().pending) == (5, 0)
    shard.close()
