"""The trainers' numbers for Prometheus, from the ledger and the timetable: how each job's runs ended, and when it is due."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import Metric

from streams.runtime.metric_families import Families, counter, describe_processes, gauge
from trainers.jobs.ledger import KINDS, Kind, RunTotals, State

ENDED = (State.SUCCEEDED, State.FAILED, State.SKIPPED)
NONE = RunTotals()


def render_metrics(
    totals: Mapping[tuple[Kind, State], RunTotals],
    due: Mapping[Kind, datetime],
    pruned_bytes: float,
    process: Mapping[str, Any],
    now: float,
) -> bytes:
    """Render a ledger's totals in Prometheus' text format; `due` are the next due times, `process` is of `read_process`."""
    return generate_latest(Families(lambda: _all_families(totals, due, pruned_bytes, process, now)))


def _all_families(
    totals: Mapping[tuple[Kind, State], RunTotals],
    due: Mapping[Kind, datetime],
    pruned_bytes: float,
    process: Mapping[str, Any],
    now: float,
) -> Iterator[Metric]:
    ended = [((kind, state), totals.get((kind, state), NONE).runs) for kind in KINDS for state in ENDED]
    yield counter("job_runs", "Runs in the ledger that ended, by how they ended.", ["kind", "state"], ended)
    success = {kind: totals.get((kind, State.SUCCEEDED), NONE).last_end for kind in KINDS}
    about = "When a run last succeeded, in seconds since the epoch; 0: never."
    yield gauge("job_last_success_timestamp_seconds", about, ["kind"], [((kind,), success[kind] or 0) for kind in KINDS])
    about = "When the job is due next, in seconds since the epoch; a job that is off is due never."
    yield gauge("job_next_due_timestamp_seconds", about, ["kind"], [((kind,), at.timestamp()) for kind, at in due.items()])
    for state, about in ((State.REQUESTED, "Requested runs that wait for their start."), (State.RUNNING, "Runs in progress.")):
        runs = [((kind,), totals.get((kind, state), NONE).runs) for kind in KINDS]
        yield gauge("job_waiting" if state is State.REQUESTED else "job_running", about, ["kind"], runs)
    started = {kind: totals.get((kind, State.RUNNING), NONE).first_start for kind in KINDS}
    ages = [((kind,), 0.0 if at is None else max(now - at, 0.0)) for kind, at in started.items()]
    yield gauge("job_running_seconds", "How long the run in progress has taken so far, 0 without one.", ["kind"], ages)
    yield counter("pruned_bytes", "Bytes that runs of the job prune removed.", [], [((), pruned_bytes)])
    yield from describe_processes({(): process})
