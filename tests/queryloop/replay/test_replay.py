"""A replay counts what is in the log: on both brokers, equal to the independent recount, through bad lines and killed workers."""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from pyarrow import parquet

import queryloop.replay.replay
from queryloop.replay.replay import Pacing, ProcessError, ReplayError, isolate, replay, replay_isolated
from queryloop.replay.result_files import write_results
from streams.brokers.broker import Broker
from streams.brokers.topics import KafkaSettings, end_offsets
from streams.counting.caps.settings import CountingSettings
from streams.events.rules import CountingRules
from streams.importers.log_files import LogFileError, read_log
from streams.importers.mapping import Mapping, read_mapping
from streams.runtime.processes import Child
from streams.store.held_shards import shard_path
from streams.store.shard import Shard
from streams.worker.settings import StreamsSettings
from tests.support.logs import NOW, START, day, feed
from tests.support.recount import Recount, recount
from tests.support.replayed_logs import assert_results, make_log, read_results, require, write_log
from tests.support.ubi_recount import recount_ubi


@pytest.mark.parametrize("kind", [pytest.param("embedded", marks=pytest.mark.full), "kafka"])
def test_a_worker_killed_in_the_middle_changes_no_count(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    require(kind)
    lines = make_log(7, 4000)
    killed: list[int] = []
    progress = queryloop.replay.replay.read_progress

    def read_and_kill(settings: StreamsSettings) -> tuple[dict[int, int], int]:
        offsets, applied = progress(settings)
        if offsets and not killed:
            worker = [one for one in psutil.Process().children() if "streams" in one.cmdline()]
            killed.extend(one.pid for one in worker)
            worker[0].kill()
            return {}, applied
        return offsets, applied

    monkeypatch.setattr(queryloop.replay.replay, "read_progress", read_and_kill)
    as_of = [day(START + number * 86_400) for number in (1, 10, 21, 30)]
    summary = replay_isolated(write_log(tmp_path / "log.jsonl.gz", lines), as_of, tmp_path / "out", kind)  # type: ignore[arg-type]
    expected = recount(lines)
    assert killed and "event=worker_restarted signal=9" in caplog.text
    assert_results(tmp_path / "out", expected, as_of)
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text()) | {"as_of": as_of}
    assert summary["lines"] == summary["events"] == len(lines)
    assert summary["counted"] == expected.counted
    assert summary["events"] == summary["counted"] + summary["duplicates"] + sum(summary["quarantined"].values())
    assert summary["pending"] == 0


@pytest.fixture(scope="module")
def real_lines(shared_logs: dict[str, Path]) -> list[bytes]:
    """All real logs as one: their days, sessions and ids do not meet."""
    if not shared_logs:
        pytest.skip("no ../shared/data")
    return [line for path in shared_logs.values() for line in read_log(path)]


@pytest.fixture(scope="module")
def real_recount(real_lines: list[bytes]) -> Recount:
    return recount(real_lines)


@pytest.mark.parametrize("kind", ["embedded", "kafka"])
@pytest.mark.full
def test_the_real_logs_equal_the_recount(kind: str, tmp_path: Path, real_lines: list[bytes], real_recount: Recount) -> None:
    require(kind)
    lines, expected = real_lines, real_recount
    days = sorted({datetime.fromtimestamp(one["us"] / 1e6, UTC).date() for one in expected.impressions.values()})
    as_of = [
        days[0] + timedelta(1),
        days[len(days) // 3],
        days[-10],
        days[-1] + timedelta(1),
        date(1997, 9, 17),
        date(1997, 9, 28),
    ]
    log, uncapped = write_log(tmp_path / "log.jsonl.gz", lines), StreamsSettings(counting=CountingSettings(session_cap=0))
    summary = replay_isolated(log, as_of, tmp_path / "out", kind, settings=uncapped)  # type: ignore[arg-type]
    assert_results(tmp_path / "out", expected, as_of)
    assert summary["counted"] == expected.counted


MAPPING = """
SELECT * REPLACE (
    from_json(items, '["VARCHAR"]') AS items, try_cast(position AS BIGINT) AS position, try_cast(ts AS TIMESTAMPTZ) AS ts
)
FROM log
"""


def write_formats(folder: Path, lines: list[bytes]) -> dict[Path, Mapping | None]:
    """The same events in every format, each with its mapping."""
    content = b"\n".join(lines)
    (folder / "log.jsonl").write_bytes(content)
    (folder / "log.jsonl.gz").write_bytes(gzip.compress(content))
    (folder / "log.jsonl.zst").write_bytes(pa.compress(content, codec="zstd", asbytes=True))
    events = [json.loads(line) for line in lines]
    names = list(dict.fromkeys(name for event in events for name in event))
    columns = {name: pa.array([event.get(name) for event in events]) for name in names}
    parquet.write_table(pa.table(columns), folder / "log.parquet")
    with (folder / "log.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        for event in events:
            ts = datetime.fromtimestamp(event["ts"], UTC).isoformat()
            writer.writerow(event | {"ts": ts} | ({"items": json.dumps(event["items"])} if "items" in event else {}))
    (folder / "map.sql").write_text(MAPPING)
    mapping = read_mapping(folder / "map.sql")
    return {path: mapping if path.suffix == ".csv" else None for path in sorted(folder.glob("log.*"))}


def test_the_same_events_in_any_format_give_the_same_tables(tmp_path: Path) -> None:
    lines = make_log(5, 300)[:-2]
    as_of = [day(START + 12 * 86_400)]
    rules, results = CountingRules(retention_days=0), []
    for path, mapping in write_formats(tmp_path, lines).items():
        folder = tmp_path / f"counted-{path.name}"
        shard = Shard.open(shard_path(folder, 0), rules)
        feed(shard, list(read_log(path, mapping)))
        shard.close()
        write_results(folder, 1, rules, as_of, folder / "out", NOW)
        results.append(read_results(folder / "out"))
    assert len(results) == 5
    assert len(str(results[0]["windows.csv"])) > 1000
    assert all(one == results[0] for one in results)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_the_same_events_in_any_format_are_replayed_to_the_same_tables(kind: str, tmp_path: Path) -> None:
    require(kind)
    lines = make_log(6, 2000)[:-2]
    as_of = [day(START + number * 86_400) for number in (10, 21)]
    for path, mapping in write_formats(tmp_path, lines).items():
        summary = replay_isolated(path, as_of, tmp_path / path.suffix, kind, mapping=mapping)  # type: ignore[arg-type]
        assert summary["lines"] == len(lines)
        assert read_results(tmp_path / path.suffix) == read_results(tmp_path / ".csv"), path
    assert len(list(tmp_path.glob(".*"))) == 5


NO_EVENTS = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\xef\xbb\xbf\r\n \t\n\n",
    "empty.gz": gzip.compress(b""),
    "empty.csv": b"",
    "header.csv": b"t,q\n",
    "where.csv": b"t,q\n1,red\n",
}


@pytest.mark.parametrize("name", NO_EVENTS)
def test_a_log_that_sends_no_event_gives_empty_tables(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NO_EVENTS[name])
    sql = "SELECT 'query' AS type, t::DOUBLE AS ts, 's' AS session_id, q AS query FROM log WHERE q <> 'red'"
    as_of, out = [date(2020, 1, 1)], tmp_path / "out"
    summary = replay_isolated(tmp_path / name, as_of, out, mapping=Mapping("m", sql) if name.endswith("csv") else None)
    assert (summary["lines"], summary["counted"], summary["quarantined"], summary["latest_ts"]) == (0, 0, {}, None)
    assert_results(out, recount([]), as_of)


def test_a_real_foreign_log_equals_the_recount(tmp_path: Path, ubi_log: Path) -> None:
    lines = recount_ubi(read_log(ubi_log)).lines()
    expected = recount(lines)
    as_of = [date(2024, 12, 16), date(2025, 1, 1), date(2025, 1, 24), date(2025, 2, 6), date(2025, 3, 4)]
    summary = replay_isolated(ubi_log, as_of, tmp_path / "out", mapping=read_mapping(Path("ubi.sql")))
    assert_results(tmp_path / "out", expected, as_of)
    assert (summary["lines"], summary["counted"], summary["duplicates"]) == (len(lines), expected.counted, 0)
    assert summary["quarantined"] == {"invalid": 23, "orphan_click": 11}
    assert [rows["windows"] for rows in summary["rows"].values()] == [595, 0, 188, 788, 271]


def test_pacing_keeps_the_scaled_distances_of_event_time() -> None:
    now = [100.0]
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    lines = [("s", 0, b"a"), ("s", 60_000_000, b"b"), ("s", 30_000_000, b"early"), ("s", None, b"bad"), ("s", 120_000_000, b"c")]
    paced = Pacing(speed=60, clock=lambda: now[0], wait=wait).apply(lines)
    assert [line for _, line in paced] == [b"a", b"b", b"early", b"bad", b"c"]
    assert waits == [pytest.approx(1.0), pytest.approx(1.0)]


def test_replay_sends_every_line_to_a_running_broker(broker: Broker, unique: str, tmp_path: Path) -> None:
    kafka = KafkaSettings(topic=unique, quarantine_topic=f"{unique}.q", partitions=2)
    lines = [*make_log(3, 50), b'{"type":"query","event_id":"huge","session_id":"x","query":"' + b"x" * 2_000_000 + b'"}']
    counters, positions = replay(write_log(tmp_path / "log.jsonl.gz", lines), broker.bootstrap, kafka)
    assert counters.delivered == len(lines) and counters.failed == 0
    assert positions == end_offsets(broker.bootstrap, unique)


def test_isolation_keeps_the_meaning_and_changes_only_where(tmp_path: Path) -> None:
    settings = StreamsSettings.model_validate(
        {"worker": {"session_gap_s": 60}, "kafka": {"partitions": 2}, "events": {"max_items": 3}}
    )
    mine = isolate(settings, tmp_path, "here:1", "embedded")
    assert (mine.worker.session_gap_s, mine.kafka.partitions, mine.events.max_items) == (60, 2, 3)
    assert (mine.worker.retention_days, mine.data.dir, mine.kafka.bootstrap) == (0, tmp_path, "here:1")


def test_a_missing_log_and_a_failing_worker_leave_nothing_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "scratch").mkdir()
    before = psutil.Process().children()  # brokers that other tests share
    with pytest.raises(LogFileError):
        replay_isolated(tmp_path / "missing", [date(2020, 1, 1)], tmp_path / "out")
    log = write_log(tmp_path / "log.jsonl.gz", make_log(1, 5))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("queryloop.replay.replay.free_port", lambda: port)
        with pytest.raises(ProcessError, match=rf"(?s)ended with code 1.*port {port} on 127\.0\.0\.1 is in use"):
            replay_isolated(log, [date(2020, 1, 1)], tmp_path / "out")
    assert psutil.Process().children() == before
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_replay_stops_what_it_started(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import sys; from datetime import date; from pathlib import Path; from queryloop.replay.replay import replay_isolated\n"
        "replay_isolated(Path(sys.argv[1]), [date(2020, 1, 1)], Path(sys.argv[2]))"
    )
    log = write_log(tmp_path / "log.jsonl.gz", make_log(1, 5))
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", code, log, tmp_path / "out"]
    environ = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    with Child("replay", command, tmp_path / "log.txt", environ) as child:
        process = psutil.Process(child.pid)
        child.wait_until(lambda: len(process.children()) == 2, 30, "two children")
        started = process.children()
        os.kill(child.pid, number)
        assert child.sleep(20) not in (None, 0)
    assert psutil.wait_procs(started, timeout=5)[1] == []
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_worker_that_applies_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queryloop.replay.replay, "STALL_S", 0.2)
    monkeypatch.setattr(queryloop.replay.replay, "read_progress", lambda settings: ({}, 0))
    with pytest.raises(ReplayError, match=r"applied nothing for 0\.2 s"):
        replay_isolated(write_log(tmp_path / "log.jsonl.gz", make_log(1, 5)), [date(2020, 1, 1)], tmp_path / "out")


def test_importing_replay_starts_no_heavy_library() -> None:
    code = "import sys, queryloop.replay.replay; print([m for m in ('faust', 'torch', 'aiokafka', 'kafka') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
