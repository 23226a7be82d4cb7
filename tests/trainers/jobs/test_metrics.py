"""The trainers' metrics: what an operator asks about jobs, from a ledger and the due times."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.clocks import Clock
from tests.support.prometheus import read_families, read_value
from trainers.jobs.ledger import KINDS, Kind, Ledger, State
from trainers.jobs.metrics import render_metrics

EXPOSED = (Path(__file__).parent / "metrics.txt").read_text(encoding="utf-8")
"""Names, types, labels and values of the ledger that `fill` makes, at 2,000 seconds."""
PROCESS = {"version": "9.9", "python": "3.11.2", "disk_free_bytes": 30, "disk_size_bytes": 120}
DUE: dict[Kind, datetime] = {"ctr": datetime(2026, 1, 2, 3, tzinfo=UTC), "index": datetime(2026, 1, 2, 2, 30, tzinfo=UTC)}


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000.0)


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", clock)


def end(ledger: Ledger, kind: Kind, state: State) -> None:
    run = ledger.request(kind)
    ledger.start(run, 1)
    ledger.finish(run, state, {})


def fill(ledger: Ledger, clock: Clock) -> None:
    """Three runs of ctr that ended at 1,000, 1,100 and 1,200 s, others of index and prune; of policy one runs, one waits."""
    end(ledger, "ctr", State.SUCCEEDED)
    clock.now = 1_100.0
    end(ledger, "ctr", State.SUCCEEDED)
    clock.now = 1_200.0
    end(ledger, "ctr", State.FAILED)
    end(ledger, "index", State.SKIPPED)
    ledger.finish(ledger.begin("prune", 1).id, State.SUCCEEDED, {"bytes": 4_000})
    clock.now = 1_500.0
    ledger.start(ledger.request("policy"), 1)
    ledger.request("policy")
    clock.now = 2_000.0


def render(ledger: Ledger, now: float) -> str:
    return render_metrics(ledger.count_runs(), DUE, ledger.add_up("prune", "bytes"), PROCESS, now).decode()


def test_names_types_labels_and_values_are_those_that_dashboards_know(ledger: Ledger, clock: Clock) -> None:
    fill(ledger, clock)
    assert read_families(render(ledger, clock())) == read_families(EXPOSED)


def test_a_failed_run_is_counted_and_leaves_the_last_success(ledger: Ledger, clock: Clock) -> None:
    fill(ledger, clock)
    text = render(ledger, clock())
    assert read_value(text, "queryloop_job_runs_total", kind="ctr", state="failed") == 1
    assert read_value(text, "queryloop_job_last_success_timestamp_seconds", kind="ctr") == 1_100


def test_a_run_in_progress_shows_how_long_it_has_taken(ledger: Ledger, clock: Clock) -> None:
    fill(ledger, clock)
    text = render(ledger, clock())
    assert read_value(text, "queryloop_job_running", kind="policy") == 1
    assert read_value(text, "queryloop_job_running_seconds", kind="policy") == 500
    assert read_value(text, "queryloop_job_waiting", kind="policy") == 1
    assert read_value(text, "queryloop_job_running_seconds", kind="ctr") == 0


def test_a_job_that_is_off_is_never_due(ledger: Ledger) -> None:
    text = render(ledger, 0)
    assert read_value(text, "queryloop_job_next_due_timestamp_seconds", kind="ctr") == DUE["ctr"].timestamp()
    assert read_value(text, "queryloop_job_next_due_timestamp_seconds", kind="policy") is None


def test_every_series_is_there_before_the_first_run(ledger: Ledger) -> None:
    text = render(ledger, 0)
    assert read_families(text).keys() == read_families(EXPOSED).keys()
    for kind in KINDS:
        assert read_value(text, "queryloop_job_last_success_timestamp_seconds", kind=kind) == 0
        for state in ("succeeded", "failed", "skipped"):
            assert read_value(text, "queryloop_job_runs_total", kind=kind, state=state) == 0
