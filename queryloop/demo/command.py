"""`queryloop demo`: the whole loop twice against a simulated product, and a report of what it was worth."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from queryloop.demo.loop import run_stack
from queryloop.demo.milestones import MilestoneError
from queryloop.demo.plan import choose_plan, make_settings
from queryloop.demo.report import Measured, describe_gate, summarise, write_report
from queryloop.demo.stages import Stages
from queryloop.exits import Exit
from queryloop.output import print_answer, print_error
from queryloop.product.world import draw_world
from queryloop.settings import read_settings
from queryloop.tables import print_line, print_table
from queryloop.up.stack import UpError


def run(options: argparse.Namespace) -> int:
    """Run the demo and print a table, or the report's JSON, to stdout. Raises SettingsError."""
    settings, out = read_settings(options), options.out
    plan, world = choose_plan(quick=options.quick), draw_world(options.seed, settings.product.world)
    work = Path(tempfile.mkdtemp(prefix="queryloop-demo-"))
    with Stages(plan.expected) as stages, _interruptible():
        try:
            measured = run_stack(make_settings(settings, plan, work), plan, world, stages)
            with stages.stage("report"):
                # Without this stage itself: how long it takes is not known before it is written.
                report = write_report(replace(measured, spans=stages.spans[:-1]), out)
        except (MilestoneError, UpError) as error:
            return _end(stages, f"stage “{stages.current}” failed: {error}\nlogs: {work / 'logs'}", Exit.FAILED, options)
        except (KeyboardInterrupt, asyncio.CancelledError):
            shutil.rmtree(work, ignore_errors=True)
            return _end(stages, f"stopped in stage “{stages.current}”; nothing is left running", Exit.INTERRUPTED, options)
    _show(report, measured, out, as_json=options.json)
    if wrong := find_differences(measured):
        print("queryloop demo: " + "; ".join(wrong) + f"\nlogs: {work / 'logs'}", file=sys.stderr)
        return Exit.FAILED
    shutil.rmtree(work, ignore_errors=True)
    return Exit.DONE


def _end(stages: Stages, text: str, code: Exit, options: argparse.Namespace) -> Exit:
    """Say above the bars why the demo ends early, with --json also as its answer."""
    stages.print_line(f"queryloop demo: {text}")
    if options.json:
        print_error(text, code, as_json=True)
    return code


def find_differences(measured: Measured) -> list[str]:
    """Return each number that differs between the loop's counters and the product's totals, and why calls failed."""
    totals, counters = measured.totals, measured.counters
    pairs = {
        "failed calls": (totals.failed, 0),
        "events counted": (counters["counted"], totals.counted),
        "duplicates": (counters["duplicates"], totals.duplicates),
        "quarantined": (counters["quarantined"], dict(totals.spoiled)),
        "clicks still pending": (counters["pending"], 0),
    }
    wrong = [f"{name}: {found}, expected {expected}" for name, (found, expected) in pairs.items() if found != expected]
    return wrong + totals.describe_failures()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Stop in order on SIGTERM and SIGHUP as on Ctrl-C."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(report: dict[str, Any], measured: Measured, out: Path, *, as_json: bool) -> None:
    """Print the report to stdout."""
    if as_json:
        print_answer(report)
        return
    print_line(f"Queryloop demo, seed {measured.seed}")
    measures = ("true_click_rate", "aec_predictor", "aec_judge", "well_formed", "mean_tokens", "duplicate_rate")
    names = ("release", "true rate", "AEC predictor", "AEC judge", "well formed", "tokens", "repeats", "gate")
    rows = [
        [one["release"], *(_round(one[name]) for name in measures), describe_gate(one["gate"]).partition(":")[0]]
        for one in report["releases"]
    ]
    print_table(names, rows)
    for one in report["releases"]:
        for reason in one["gate"].get("reasons", []):
            print_line(f"{one['release']}: {reason}")
    requests, events = report["requests"], report["events"]
    print_line(
        f"{requests['answered']} lists answered, {requests['failed']} calls failed, p50 {requests['p50_ms']} ms, "
        f"p99 {requests['p99_ms']} ms"
    )
    print_line(f"{events['counted']} events counted; the product's own totals say {measured.totals.counted}")
    print_line(summarise(report))
    print_line(f"{out / 'report.html'} and report.json in {sum(report['seconds'].values()):.0f} s")


def _round(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
