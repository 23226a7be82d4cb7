"""Maintenance keeps a shard small and changes no count, between whichever batches it runs and wherever it is killed."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.store import compaction, maintenance, shard_file
from streams.store.shard import CountingRules, Shard
from tests.support.logs import HOUR, START, click, day, difficult_logs, dirty_days, feed, impression, query, read, rows

DAY_S = 86_400
KEEP_ALL = CountingRules(retention_days=0, compact_rows=1)
TWO_DAYS = CountingRules(retention_days=2, compact_rows=1)
DAYS = [day(START + number * DAY_S) for number in range(1, 40)]


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    yield opened
    opened.close()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make maintenance due at sizes that a test reaches."""
    make_eager(monkeypatch)


def make_eager(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(compaction, "SLICE_ROWS", 3)
    patch.setattr(compaction, "OVER_US", -2 * DAY_S * 1_000_000)  # days are compacted while they still go on
    patch.setattr(maintenance, "WAL_BYTES", 20_000)
    patch.setattr(maintenance, "LOOK_EVENTS", 1)


def tables(shard: Shard, days: list[date]) -> list[object]:
    """All counts, quarantine rows and totals of a shard."""
    counts = [(rows(shard.windows(as_of)), rows(shard.cooccurrence(as_of))) for as_of in days]
    return [counts, rows(shard.quarantine().drop_columns(["id"])), replace(shard.totals(), days_exported=[])]


def export_all(shard: Shard) -> None:
    """Mark all days as exported: only then are they deleted."""
    for exported in dirty_days(shard):
        shard.mark_exported(exported)


def busy_log(days: int, a_day: int) -> list[bytes]:
    """Days of lists, clicks and queries over few texts, so that keys repeat."""
    log = []
    for number in range(days * a_day):
        ts = START + number * DAY_S / a_day
        log.append(impression(f"i{number}", ts, f"imp{number}", ["x", "y"], query=f"q{number % 5}", session_id=f"s{number}"))
        log.append(query(f"q{number}", ts + 1, f"q{number % 3}", session_id=f"s{number}"))
        log.append(query(f"r{number}", ts + 9, f"q{number % 2}", session_id=f"s{number}"))
        log.append(click(f"c{number}", ts + 2, f"imp{number}", number % 2))
    return log


CHANGES = ("INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "EXECUTE")


class Watched:
    """A connection that records changes which were not run to their end before the next statement (`unfinished`)."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self.changed = 0
        self.unfinished: list[str] = []
        self._running: str | None = None

    def execute(self, statement: str | duckdb.Statement, params: object = None) -> Watched:
        text = (statement if isinstance(statement, str) else statement.query).strip()
        self.unfinished += [self._running] if self._running else []
        self._running = text if text.startswith(CHANGES) else None
        self.changed += self._running is not None
        self.con.execute(statement, params)
        return self

    def fetchall(self) -> list[tuple[object, ...]]:
        self._running = None
        return self.con.fetchall()

    def fetchnumpy(self) -> dict[str, object]:
        self._running = None
        return self.con.fetchnumpy()

    def __getattr__(self, name: str) -> object:
        return getattr(self.con, name)


def test_every_statement_that_changes_something_is_run_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eager: None
) -> None:
    """DuckDB may run a statement only in part if its result is not fetched."""
    connect, watched = duckdb.connect, []

    def watch(*args: object, **options: object) -> Watched:
        watched.append(Watched(connect(*args, **options)))  # type: ignore[arg-type]
        return watched[-1]

    shard = Shard.open(tmp_path / "shard.duckdb", TWO_DAYS)  # the tables, which are made in one script
    shard.close()
    monkeypatch.setattr(shard_file.duckdb, "connect", watch)
    shard = Shard.open(tmp_path / "shard.duckdb", TWO_DAYS)
    earlier = [impression("e1", START - 60, "imp1", ["x", "z"], query="q1"), click("o1", START, "nowhere")]
    log = busy_log(6, 10)
    feed(shard, [*log[:20], *earlier, *log[20:], click("z", START + 5 * DAY_S, "imp199", 7), *log[-9:]], batch=7)
    while shard.maintain():
        export_all(shard)
    shard.mark_published([row["id"] for row in shard.unpublished().to_pylist()])
    shard.close()
    assert watched[0].changed > 100
    assert watched[0].unfinished == []


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(log=difficult_logs(), seed=st.integers(0, 2**32), batch=st.integers(1, 12), rules=st.sampled_from([KEEP_ALL, TWO_DAYS]))
def test_maintenance_between_any_batches_changes_no_table(log: list[bytes], seed: int, batch: int, rules: CountingRules) -> None:
    chance = random.Random(seed)
    delivered = log + chance.choices(log, k=len(log) // 2) if log else []
    chance.shuffle(delivered)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        make_eager(patch)
        patch.setattr(maintenance, "WAL_BYTES", chance.choice([1, 5_000, 2**30]))
        shards = [Shard.open(Path(folder) / f"{name}.duckdb", rules) for name in ("maintained", "other")]
        for shard in shards:
            stack.callback(shard.close)
        for start in range(0, len(delivered), batch):
            exports = chance.random() < 0.5
            for shard in shards:
                feed(shard, delivered[start : start + batch], start=start)
                if exports:
                    export_all(shard)
            for _ in range(chance.randrange(4)):
                shards[0].maintain(chance.choice([0, 60]))
        shards[0].maintain(60)
        oldest = day((shards[1].totals().latest_us or 0) / 1e6 - rules.retention_days * DAY_S)
        days = [as_of for as_of in DAYS if as_of >= oldest][::4]
        maintained, other = (tables(shard, days) for shard in shards)
        assert maintained == other


def test_due_maintenance_is_done_in_slices_and_then_nothing_is_due(shard: Shard, eager: None) -> None:
    feed(shard, busy_log(3, 20), 16)
    before = tables(shard, DAYS[:4])
    first = shard.maintain(0)
    assert len(first) == 1
    rest = shard.maintain(60)
    assert {one.kind for one in first + rest} == {"checkpoint", "look", "compaction"}
    assert shard.maintain(60) == []
    assert tables(shard, DAYS[:4]) == before
    sums = "SELECT count(*) AS n, count(DISTINCT (day, query_norm, item_norm, position)) AS keys FROM window_deltas"
    assert read(shard, sums)["n"] == read(shard, sums)["keys"]
    totals = shard.maintenance_totals()["compaction"]
    assert totals.rows_before > 2 * totals.rows_after > 0
    assert totals.last_day in DAYS[:4] + [day(START)]
    assert totals.slices == sum(one.kind == "compaction" for one in first + rest)
    assert 0 < totals.longest_s <= totals.seconds


def test_a_day_is_compacted_an_hour_after_its_end_and_not_before(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    midnight = (START // DAY_S + 1) * DAY_S
    compacted = []
    for start, ts in enumerate([midnight - 60, midnight + 60, midnight + HOUR - 60, midnight + HOUR, midnight + 2 * HOUR]):
        feed(shard, [impression(f"e{start}", ts, f"i{start}")], start=start)
        compacted.append([one.day for one in shard.maintain(60) if one.kind == "compaction"])
    assert compacted == [[], [], [], [day(START)], []]
    shard.close()


def test_with_urgent_only_other_maintenance_is_left_for_later(shard: Shard, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(shard, busy_log(3, 20), 16)
    shard.maintain(60, urgent_only=True)
    assert shard.maintain(60, urgent_only=True) == []
    assert "compaction" in {one.kind for one in shard.maintain(60)}


def test_a_day_is_not_compacted_again_for_a_little_more_nor_after_a_restart(tmp_path: Path, eager: None) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    feed(shard, busy_log(1, 40))
    shard.maintain(60)
    shard.close()
    shard = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    feed(shard, [impression("new", START, "new", query="q1")], start=160)
    assert [one for one in shard.maintain(60) if one.kind == "compaction"] == []
    shard.close()


def test_the_write_ahead_log_stays_small_and_a_checkpoint_waits_for_no_reader(
    tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "WAL_BYTES", 50_000)
    wal = tmp_path / "shard.duckdb.wal"
    reader = shard.reader()
    reader.execute("BEGIN")
    seen = reader.execute("SELECT count(*) FROM impressions").fetchall()
    kinds = []
    for start, piece in enumerate(busy_log(4, 200)[at : at + 300] for at in range(0, 3000, 300)):
        feed(shard, piece, start=start * 300)
        kinds += [one.kind for one in shard.maintain(0)]
        assert not wal.exists() or wal.stat().st_size < 50_000
    assert kinds.count("checkpoint") > 3
    assert reader.execute("SELECT count(*) FROM impressions").fetchall() == seen
    reader.execute("COMMIT")
    reader.close()


def test_a_large_commit_goes_into_the_file_and_a_small_one_into_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shard_file.OPTIONS, "checkpoint_threshold", "200KB")
    path, log = tmp_path / "large.duckdb", busy_log(1, 500)
    shard = Shard.open(path, KEEP_ALL)
    feed(shard, log[:40])
    assert path.with_name("large.duckdb.wal").stat().st_size > 10_000
    feed(shard, log[40:], start=40)
    assert not path.with_name("large.duckdb.wal").exists() or path.with_name("large.duckdb.wal").stat().st_size == 0
    methods = read(shard, "SELECT DISTINCT compression FROM pragma_storage_info('seen')")["compression"].to_pylist()
    assert "Uncompressed" in methods and not any("FSST" in method for method in methods)
    shard.close()
    assert shard_rows(path) == (2000, 500)


def shard_rows(path: Path) -> tuple[int, ...]:
    """Events and lists that a shard's file holds."""
    with duckdb.connect(str(path), read_only=True) as con:
        tables = ("seen", "impressions")
        return tuple(con.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0] for table in tables)


def test_a_checkpoint_that_a_reader_holds_up_is_tried_again(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(shard, busy_log(1, 20))
    shard.mark_exported(day(START))
    reader = shard.reader()
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM days WHERE exported").fetchall() == [(1,)]
    feed(shard, [impression("late", START, "late")], start=80)  # updates the row of a day that the reader sees
    monkeypatch.setattr(maintenance, "WAL_BYTES", 1)
    assert shard.maintain(60) == []
    assert rows(shard.windows(DAYS[1]))
    reader.execute("COMMIT")
    reader.close()
    assert [one.kind for one in shard.maintain(0)] == ["checkpoint"]


def test_expiry_deletes_a_table_and_a_day_at_a_time_and_keeps_what_counting_needs(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", replace(TWO_DAYS, compact_rows=100_000))
    log = busy_log(6, 10)
    feed(shard, log)
    export_all(shard)
    cut = day(START + 6 * DAY_S - 2 * DAY_S - 24 * HOUR)
    before = tables(shard, DAYS[:8])
    slices = shard.maintain(60)
    done = [one for one in slices if one.kind == "expiry"]
    summed = [one.day for one in slices if one.kind == "compaction"]
    assert summed == [day(START + number * DAY_S) for number in range((cut - day(START)).days)], "before their lists are deleted"
    assert [one.table for one in done].count("seen") == (cut - day(START)).days
    assert sum(one.rows_before for one in done if one.table == "seen") + len(rows(read(shard, "FROM seen"))) == len(log)
    first = read(shard, "SELECT min(ts_us) AS first FROM seen")["first"][0].as_py() / 1e6
    assert day(first) == cut
    assert tables(shard, DAYS[:8]) == before  # windows are kept a window's length longer
    assert shard.maintenance_totals()["expiry"].last_day == max(one.day for one in done if one.day)
    shard.close()


def test_counts_are_deleted_a_windows_length_after_their_events(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", TWO_DAYS)
    log = busy_log(30, 2)
    feed(shard, log)
    export_all(shard)
    shard.maintain(60)
    first = read(shard, "SELECT min(day) AS day FROM window_deltas")["day"][0].as_py()
    assert first == read(shard, "SELECT min(day) AS day FROM cooccurrence_deltas")["day"][0].as_py()
    assert first == day(START + 30 * DAY_S - 3 * DAY_S - 14 * DAY_S - 1)
    shard.close()


CHILD = """
import os, sys
from pathlib import Path
import pytest
from streams.counting import retention
from streams.store import compaction, maintenance
from streams.store.shard import CountingRules, Shard
from tests.streams.store.test_maintenance import TWO_DAYS, busy_log, export_all, make_eager
from tests.support.logs import feed

path, where = Path(sys.argv[1]), sys.argv[2]
make_eager(pytest.MonkeyPatch())
shard = Shard.open(path, TWO_DAYS)
feed(shard, busy_log(6, 20), 50)
export_all(shard)

def die_in(module, name, times):
    real = getattr(module, name)
    left = [times]
    def wrapped(*args):
        result = real(*args)
        left[0] -= 1
        if not left[0]:
            os._exit(9)
        return result
    setattr(module, name, wrapped)

match where:
    case "slice": die_in(compaction, "compact_slice", 2)
    case "mark": die_in(compaction, "record_compacted", 3)
    case "expiry": die_in(retention, "expire", 4)
    case "checkpoint": die_in(maintenance, "MaintenanceSlice", 1)
shard.maintain(60)
sys.exit("survived")
"""


@pytest.mark.parametrize("where", ["slice", "mark", "expiry", "checkpoint"])
def test_a_process_that_ends_inside_a_slice_leaves_the_counts_as_they_were(tmp_path: Path, where: str) -> None:
    path = tmp_path / "shard.duckdb"
    ended = subprocess.run([sys.executable, "-c", CHILD, str(path), where], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 9, ended.stderr
    expected = Shard.open(tmp_path / "expected.duckdb", TWO_DAYS)
    feed(expected, busy_log(6, 20), 50)
    export_all(expected)
    shard = Shard.open(path, TWO_DAYS)
    assert tables(shard, DAYS[:10]) == tables(expected, DAYS[:10])
    shard.maintain(60)
    later = [impression("z1", START + 7 * DAY_S, "z", query="q1"), click("z2", START + 7 * DAY_S + 1, "z")]
    for one in (shard, expected):
        feed(one, later, start=480)
    assert tables(shard, DAYS[:10]) == tables(expected, DAYS[:10])
    shard.close()
    expected.close()


KILLED = """
import sys, time
from pathlib import Path
import pytest
from streams.store import maintenance
from tests.streams.store.test_maintenance import KEEP_ALL, busy_log, make_eager
from streams.store.shard import Shard
from tests.support.logs import feed

make_eager(pytest.MonkeyPatch())
maintenance.WAL_BYTES = 1
shard = Shard.open(Path(sys.argv[1]), KEEP_ALL)
log = busy_log(8, 100)
print("ready", flush=True)
for start in range((shard.position() or ("", 0))[1], len(log), 60):
    feed(shard, log[start : start + 60], start=start)
    shard.maintain(60)
"""


def test_kill_9_during_counting_compaction_or_checkpoint_loses_no_event_and_counts_none_twice(tmp_path: Path) -> None:
    path, chance = tmp_path / "shard.duckdb", random.Random(3)
    kills = 0
    while kills < 8:
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        try:
            child.wait(chance.uniform(0.05, 0.4))
            break
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            kills += 1
        finally:
            child.stdout.close()
    log = busy_log(8, 100)
    shard, expected = Shard.open(path, KEEP_ALL), Shard.open(tmp_path / "expected.duckdb", KEEP_ALL)
    _, offset = shard.position() or ("", 0)
    feed(shard, log[offset:], start=offset)
    feed(expected, log)
    assert tables(shard, DAYS[:10]) == tables(expected, DAYS[:10])
    assert kills > 2
    shard.close()
    expected.close()


def test_an_empty_shard_needs_no_maintenance(shard: Shard) -> None:
    assert shard.maintain(60) == []
    assert shard.maintenance_totals() == {}
