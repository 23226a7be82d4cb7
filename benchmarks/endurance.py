"""Sections `memory` and `replay`: one worker applies millions of events in a row; a log is sent by `queryloop replay`."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.goals import Goal
from benchmarks.probes.usage import resident_mib
from benchmarks.progress_log import log_progress
from benchmarks.traffic import START, Traffic
from benchmarks.worker_runs import Site, Topic, running_worker
from streams.runtime.processes import ProcessError

FULL_LOG_EVENTS = 28_600_000
MEMORY_GOAL = 0.20

Sample = tuple[float, int, float]
"""Monotonic seconds, events applied, MiB resident."""


def sample_worker(site: Site, topic: Topic) -> list[Sample]:
    """Let a worker apply a topic; return its samples from the first applied batch to the last."""
    log_progress(f"one worker, {topic.events:,} events in one go")
    samples: list[Sample] = []
    with running_worker(site, topic.name) as worker:
        for seen in worker.watch():
            if seen.events:
                samples.append((time.monotonic(), seen.events, resident_mib(worker.pid)))
            if seen.events >= topic.events:
                return samples
    raise AssertionError("watch never ends")


def memory_between(samples: list[Sample], low: float, high: float) -> float:
    """Return the median resident memory (MiB) while low <= events applied <= high."""
    return median(mib for _, events, mib in samples if low <= events <= high)


def report_memory(samples: list[Sample], early: int) -> dict[str, Any]:
    """Compare the memory from `early` events on, for a fifth of that, with the last part of the run of the same length."""
    last = samples[-1][1]
    before, after = memory_between(samples, early, early * 1.2), memory_between(samples, last - early * 0.2, last)
    return {"early_events": early, "events": last, "early_mib": before, "late_mib": after, "growth": after / before - 1}


def judge_memory(section: dict[str, Any]) -> list[Goal]:
    """Return the goal: memory grows by at most a fifth."""
    name = f"worker's memory, {section['events'] / 1e6:.1f} M events over {section['early_events'] / 1e6:.1f} M: growth"
    return [Goal(name, section["growth"] * 100, MEMORY_GOAL * 100, "at most", " %")]


def extrapolate(samples: list[Sample], whole: int) -> float:
    """Return the seconds for `whole` events: the run as measured, the rest at the rate of its last fifth."""
    (began, first, _), (ended, last, _) = samples[0], samples[-1]
    at, since, _ = next(sample for sample in samples if sample[1] >= last - (last - first) * 0.2)
    return (ended - began) + (whole - last) * (ended - at) / (last - since)


def report_catch_up(samples: list[Sample]) -> dict[str, Any]:
    """Return the numbers of a worker that reads the log again from Kafka."""
    (began, first, _), (ended, last, _) = samples[0], samples[-1]
    return {
        "events": last,
        "seconds": ended - began,
        "per_s": (last - first) / (ended - began),
        "full_log_events": FULL_LOG_EVENTS,
        "full_log_s": extrapolate(samples, FULL_LOG_EVENTS),
    }


def measure_replay(folder: Path, events: int) -> dict[str, Any]:
    """Run `queryloop replay --isolated` on a log file: emitter, broker and worker together, tables written at the end."""
    log = folder / "replay.ndjson"
    log_progress(f"writing a log of {events:,} events")
    with log.open("wb", 1 << 20) as file:
        for line in Traffic(seed=7).lines(events):
            file.write(line.text + b"\n")
    day = (datetime.fromtimestamp(START, UTC) + timedelta(days=14)).date()
    command = ["replay", log, "--isolated", "--broker", "kafka", "--as-of", day, "--out", folder / "replayed"]
    log_progress("queryloop replay --isolated --broker kafka")
    began = time.monotonic()
    whole = [sys.executable, "-m", "queryloop", *map(str, command)]
    done = subprocess.run(whole, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ProcessError(f"queryloop replay ended with code {done.returncode}: {done.stderr.strip()[-1500:]}")
    seconds = time.monotonic() - began
    log.unlink()
    return {
        "events": events,
        "seconds": seconds,
        "per_s": events / seconds,
        "full_log_events": FULL_LOG_EVENTS,
        "full_log_s": seconds * FULL_LOG_EVENTS / events,
    }
