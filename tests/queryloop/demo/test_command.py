"""The demo as a person runs it, with very small sizes: the whole loop over real parts, and a clean end whatever happens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from queryloop.demo.command import find_differences
from queryloop.demo.plots import Span
from queryloop.demo.report import Measured
from queryloop.product.totals import ProductTotals, Shown
from queryloop.product.world import draw_world
from tests.support.command_table import check_answer

COMMAND = [sys.executable, "-m", "queryloop", "demo", "--quick", "--seed", "1"]


def start(tmp_path: Path, *options: str) -> subprocess.Popen[str]:
    """Start a demo whose work folder is under tmp_path."""
    (tmp_path / "work").mkdir(exist_ok=True)
    environ = {**os.environ, "TMPDIR": str(tmp_path / "work")}
    return subprocess.Popen(
        [*COMMAND, "--out", str(tmp_path / "out"), *options],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tails(work: Path, lines: int = 40) -> str:
    """The ends of all logs of a demo that failed and kept its folder."""
    logs = sorted(work.glob("queryloop-demo-*/logs/*.log"))
    return "".join(f"\n--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) for log in logs)


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """All processes under this one."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = start(tmp_path, "--json")
    yield process
    process.kill()
    process.communicate()


@pytest.mark.full
def test_the_loop_goes_round_and_counts_what_the_product_sent(tmp_path: Path, running: subprocess.Popen[str]) -> None:
    out, said = running.communicate(timeout=600)
    assert running.returncode == 0, said + tails(tmp_path / "work")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    check_answer("demo", 0, report)
    assert report["requests"]["failed"] == 0
    assert report["requests"]["answered"] >= 2000
    assert [one["release"] for one in report["releases"]] == ["r0000", "r0001", "r0002"]
    assert report["releases"][0]["true_click_rate"] > 0
    assert len(report["swaps"]) == sum(one["promoted"] for one in report["releases"]) - 1
    for refused in (one for one in report["releases"] if not one["promoted"]):
        assert refused["gate"]["reasons"]
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    assert list((tmp_path / "work").glob("queryloop-*")) == []  # torch leaves a cache folder of its own


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_an_interrupt(tmp_path: Path, number: signal.Signals, running: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(family(running)) < 5:
        assert time.monotonic() < deadline
        assert running.poll() is None
        # Waiting on a real process: broker, worker, serving, trainers and the first job.
        time.sleep(0.1)
    children = family(running)
    running.send_signal(number)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "nothing is left running" in said
    _, alive = psutil.wait_procs(children, timeout=5)
    assert alive == []
    assert list((tmp_path / "work").glob("queryloop-*")) == []  # torch leaves a cache folder of its own


def measured(counted: int, failed: int = 0) -> Measured:
    """Totals of three events, against a loop that has counted `counted`."""
    totals = ProductTotals(queries=1, clicks=1, duplicates=2, failed=failed, spoiled=Counter(late_click=1))
    totals.shown = [Shown(0.0, 0.0, "r0000", "q", ("a",))]
    counters = {"counted": counted, "duplicates": 2, "quarantined": {"late_click": 1}, "pending": 0}
    return Measured(0, draw_world(0), totals, [], counters, [Span("start", 0.0, 1.0)], 0.0)


def test_each_number_that_differs_from_the_products_totals_is_named() -> None:
    assert find_differences(measured(3)) == []
    assert find_differences(measured(4)) == ["events counted: 4, expected 3"]
    assert find_differences(measured(3, failed=2)) == ["failed calls: 2, expected 0"]
