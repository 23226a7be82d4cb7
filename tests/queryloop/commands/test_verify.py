"""`queryloop verify` on each broker: equal while the worker counts and when it is stopped; one changed row is found and named."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest
from pydantic import SecretStr

from queryloop.cli import main
from queryloop.exits import Exit
from queryloop.up.worker_process import WorkerProcess, read_status
from streams.brokers.topics import create_topics
from streams.importers.log_files import read_log
from streams.importers.mapping import read_mapping
from streams.runtime.processes import free_port
from streams.store.held_shards import shard_path
from streams.worker.settings import StreamsSettings
from tests.streams.worker.test_main import await_applied, emit, make_settings
from tests.support.command_table import check_answer
from tests.support.logs import START, click, day, impression, query

DAY = 86_400


def product_log() -> list[bytes]:
    """Three days of sessions with repeats, bad lines, an orphan, a late click, an event after its time."""
    lines = []
    for number in range(300):
        ts, session = START + number * 0.01 * DAY, {"session_id": f"s{number % 40}"}
        lines += [
            query(f"q{number}", ts, f"Red  Shoes {number % 7}", **session),
            impression(f"i{number}", ts + 1, f"L{number}", ["a", "b", f"c {number % 3}"], **session),
            query(f"r{number}", ts + 60, f"blue {number % 5}", **session),
        ]
        lines += [click(f"c{number}", ts + 9, f"L{number}", number % 3, **session)] * (1 + number % 2)
    lines[50:50] = [b"{broken", click("orphan", START + 5, "unknown"), query("q3", START + 3 * 0.01 * DAY, "Red  Shoes 3")]
    return [*lines, click("late", START + 2 * DAY, "L0", session_id="s0"), impression("early", START - 60, "L7", ["a"])]


@dataclass
class Counted:
    """A data folder in which a worker has counted a log, and the settings file of it."""

    settings: StreamsSettings
    config: Path

    def verify(self, *arguments: str) -> int:
        return main(["--config", str(self.config), "verify", *arguments])

    def change(self, partition: int, sql: str) -> None:
        """Change a shard's table behind its back."""
        with duckdb.connect(str(shard_path(self.settings.data.dir, partition))) as con:
            con.execute(sql)


def write_config(settings: StreamsSettings, path: Path) -> Path:
    kafka = settings.kafka
    path.write_text(
        f'[data]\ndir = "{settings.data.dir}"\n'
        f'[kafka]\nbootstrap = "{kafka.bootstrap}"\ntopic = "{kafka.topic}"\nquarantine_topic = "{kafka.quarantine_topic}"\n'
        f'group = "{kafka.group}"\npartitions = {kafka.partitions}\nsession_timeout_s = 6\n'
        f"[worker]\nport = {settings.worker.port}\nretention_days = {settings.worker.retention_days}\n"
        f"[lake]\nmaturity_floor_s = 0\n"
    )
    return path


@pytest.fixture
def counted(bootstrap: str, unique: str, tmp_path: Path) -> Iterator[Counted]:
    settings = make_settings(bootstrap, unique, tmp_path / "data", retention_days=30)
    found = Counted(settings, write_config(settings, tmp_path / "queryloop.toml"))
    create_topics(bootstrap, settings.kafka)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, emit(settings, product_log()))
        assert found.verify() == Exit.DONE, "while the worker holds the shards"
        worker.stop()
    yield found


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_equal_then_one_changed_row_is_named(counted: Counted, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert counted.verify() == Exit.DONE
    assert "equal: 1,355 lines from Kafka" in capsys.readouterr().out
    with gzip.open(tmp_path / "log.jsonl.gz", "wb") as log:
        log.write(b"\n".join(product_log()))
    assert counted.verify("--log", str(tmp_path / "log.jsonl.gz"), "--json") == Exit.DONE
    assert answer(capsys)["equal"]

    today = day(START)
    counted.change(1, f"INSERT INTO window_deltas VALUES (DATE '{today}', 'red shoes 1', 'a', 0, 0, 1)")
    assert counted.verify("--json") == Exit.FAILED
    printed = answer(capsys)
    check_answer("verify", Exit.FAILED, printed)
    assert printed["differing"] == 1
    [row] = printed["differences"]
    assert (row["shard"], row["kind"], row["day"], row["query"], row["item"]) == (1, "window", str(today), "red shoes 1", "a")
    assert row["live"]["clicks"] == row["recounted"]["clicks"] + 1
    assert counted.verify() == Exit.FAILED
    assert f"shard 1 {today} window 'red shoes 1', 'a' at 0: live" in capsys.readouterr().out


MAPPING = """
SELECT line->>'type' AS type, line->>'event_id' AS event_id, (line->>'ts')::DOUBLE AS ts, line->>'session_id' AS session_id,
    line->>'query' AS query, line->>'impression_id' AS impression_id, (line->'items')::VARCHAR[] AS items,
    (line->>'position')::INT AS position
FROM (SELECT raw::JSON AS line FROM log)
"""


def test_a_log_that_was_replayed_with_a_mapping_is_verified_with_it(
    bootstrap: str, unique: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(bootstrap, unique, tmp_path / "data", retention_days=30)
    found = Counted(settings, write_config(settings, tmp_path / "queryloop.toml"))
    lines = [line for line in product_log() if line != b"{broken"]
    (tmp_path / "map.sql").write_text(MAPPING)
    with (tmp_path / "log.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["raw", "none"], *([line.decode(), ""] for line in lines)])
    mapped = ("--log", str(tmp_path / "log.csv"), "--mapping", str(tmp_path / "map.sql"))
    create_topics(bootstrap, settings.kafka)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, emit(settings, list(read_log(Path(mapped[1]), read_mapping(Path(mapped[3]))))))
        worker.stop()
    assert found.verify(*mapped, "--json") == Exit.DONE
    printed = answer(capsys)
    assert (printed["equal"], printed["source"], printed["events"]) == (True, "log", len(lines))
    found.change(0, "UPDATE window_deltas SET impressions = impressions + 1")
    assert found.verify(*mapped) == Exit.FAILED


def test_a_mapping_goes_with_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--mapping", "ubi.sql"]) == Exit.USAGE
    assert "--mapping says how to read a log: it goes with --log FILE" in capsys.readouterr().err


@pytest.mark.parametrize(("kafka", "said"), [("", "no broker runs here"), ('bootstrap = "127.0.0.1:1"', "is it running")])
def test_without_a_broker_the_error_says_how_to_get_one(
    tmp_path: Path, kafka: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.toml").write_text(f'[data]\ndir = "{tmp_path}"\n[kafka]\npartitions = 1\n{kafka}\n')
    assert main(["--config", str(tmp_path / "q.toml"), "verify"]) == Exit.UNAVAILABLE
    assert said in capsys.readouterr().err


def test_a_shard_whose_worker_does_not_answer_cannot_be_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q.toml").write_text(f'[data]\ndir = "{tmp_path}"\n[kafka]\npartitions = 1\n')
    monkeypatch.setattr("queryloop.commands.shard_reads.RESTART_S", 0.3)
    code = f"import duckdb; con = duckdb.connect({str(shard_path(tmp_path, 0))!r}); print('held', flush=True); input()"
    shard_path(tmp_path, 0).parent.mkdir()
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        assert main(["--config", str(tmp_path / "q.toml"), "verify"]) == Exit.UNAVAILABLE
    assert "neither its worker nor its file can be read" in capsys.readouterr().err


def test_a_worker_that_asks_for_another_key_is_not_waited_for(counted: Counted, tmp_path: Path) -> None:
    settings = counted.settings.model_copy(
        update={"worker": counted.settings.worker.model_copy(update={"key": SecretStr("k" * 20), "port": free_port()})}
    )
    with WorkerProcess(settings, tmp_path / "second.log") as worker:
        worker.child.wait_until(lambda: len((read_status(settings) or {"shards": []})["shards"]) == 2, 60.0, "shards held")
        assert counted.verify() == Exit.UNAVAILABLE
