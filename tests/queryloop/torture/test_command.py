"""`queryloop torture`: real processes are killed while a log flows, and every count is right; impossible options are refused."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from queryloop.cli import main
from queryloop.exits import Exit
from streams.brokers.jars import missing_tool
from streams.runtime.processes import Child
from tests.support.command_table import check_answer

needs_kafka = pytest.mark.skipif(
    bool(missing_tool()) and not os.environ.get("REQUIRE_KAFKA"), reason=f"real Kafka cannot run here: {missing_tool()}"
)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders go in this test; no process of it may be left, beside the brokers of other tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = children()
    yield tmp_path
    assert children() <= before


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def torture(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    """Run the command in this process; its exit code and its report."""
    code = main(["torture", "--json", *options])
    out, error = capsys.readouterr()
    assert out, error
    return code, json.loads(out)


def assert_all_counted(code: int, told: dict[str, Any], events: int, scratch: Path) -> None:
    assert code == Exit.DONE, told
    check_answer("torture", code, told)
    assert told["equal"] is True and told["differences"] == []
    assert told["verify"]["equal"] is True
    assert told["verify"]["events"] >= events, "the product that was killed may have sent some lines twice"
    assert told["ended_by_themselves"] == []
    assert told["done"]["producer_kills"] == 1
    assert told["done"]["tending_kills"] + told["done"]["tending_missed"] == 1
    assert len(told["done"]["handovers"]) == 1
    assert list(scratch.glob("queryloop-torture-*")) == [], "an equal run leaves nothing"


@pytest.mark.full
def test_a_small_torture_on_the_embedded_broker_recovers_the_lost_log_and_counts_right(
    capsys: pytest.CaptureFixture[str], scratch: Path
) -> None:
    code, told = torture(capsys, "--broker", "embedded", "--events", "5000", "--kills", "1", "--seed", "3")
    assert_all_counted(code, told, 5000, scratch)
    assert told["done"]["kills"] >= 1
    assert told["done"]["logs_lost"] == 1, "the embedded broker forgets; the outbox does not"


@pytest.mark.full
@needs_kafka
def test_torture_on_real_kafka(capsys: pytest.CaptureFixture[str], scratch: Path) -> None:
    code, told = torture(capsys, "--events", "60000", "--kills", "8")
    assert_all_counted(code, told, 60_000, scratch)
    assert told["verify"]["complete"] is True
    assert told["done"]["kills"] >= 8 and told["done"]["logs_lost"] == 0
    assert told["restart_to_applied_s"]["measured"] >= 5


@pytest.mark.full
@needs_kafka
def test_torture_of_a_cluster_loses_no_acknowledged_event(capsys: pytest.CaptureFixture[str], scratch: Path) -> None:
    code, told = torture(capsys, "--events", "60000", "--kills", "4", "--brokers", "3", "--seed", "1")
    assert_all_counted(code, told, 60_000, scratch)
    assert told["verify"]["complete"] is True
    assert len(told["done"]["leader_kills"]) == 4


@pytest.mark.full
def test_torture_of_the_embedded_broker(capsys: pytest.CaptureFixture[str], scratch: Path) -> None:
    code, told = torture(capsys, "--broker", "embedded", "--events", "60000", "--kills", "6", "--seed", "2", "--workers", "3")
    assert_all_counted(code, told, 60_000, scratch)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_torture_leaves_no_process_and_no_file(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "queryloop", "torture", "--broker", "embedded", "--events", "5000"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with Child("torture", command, tmp_path / "log", {**os.environ, "TMPDIR": str(temporary)}) as child:
        child.wait_until(lambda: bool(list(temporary.glob("queryloop-torture-*/data/shards/*.duckdb"))), 60, "counting")
        running = psutil.Process(child.pid).children(recursive=True)
        assert len(running) >= 4, "broker, producer, two workers"
        os.kill(child.pid, number)
        assert child.sleep(60) == Exit.INTERRUPTED, child.tail()
    _, alive = psutil.wait_procs(running, timeout=5)
    assert alive == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--events", "10"], "--events 2000 or more"),
        (["--workers", "0"], "argument --workers: '0' is no whole number from 1 to 64"),
        (["--brokers", "3", "--broker", "embedded"], "leave --broker embedded out"),
        (["--keep", "."], "is not empty"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_starts(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["torture", *options])
    except SystemExit as refused:  # what argparse refuses by itself
        code = Exit(int(str(refused.code)))
    assert code == Exit.USAGE
    assert words in capsys.readouterr().err
