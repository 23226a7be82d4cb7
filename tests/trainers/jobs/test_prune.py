"""The job `prune`: what it records, who counts as a running job, and how it fails."""

from __future__ import annotations

import os
from pathlib import Path

from serving.releases import registry
from tests.support.pruned_folder import DAY_S, make_artifact, make_releases, make_settings, verify_all
from trainers.jobs.ledger import Ledger, State
from trainers.jobs.processes import hold_kind
from trainers.jobs.prune import find_in_use, preview, remove
from trainers.jobs.runner import run_recorded
from trainers.pruning.decisions import NOBODY


def test_a_run_is_recorded_with_what_it_removed(tmp_path: Path) -> None:
    """Only what a killed job left two days ago is old enough."""
    make_releases(tmp_path, 4)
    left = tmp_path / "artifacts" / "policy" / ".x.part"
    left.mkdir()
    (left / "weights").write_bytes(b"w" * 3000)
    for path in (left / "weights", left):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 2 * DAY_S))
    assert run_recorded("prune", make_settings(tmp_path)) == 0
    (run,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert run.state is State.SUCCEEDED
    assert run.outcome == {
        "detail": "removed what nobody needs",
        "bytes": 3000,
        "releases": 0,
        "artifacts": 0,
        "leftovers": 1,
        "logs": 0,
    }
    assert len(verify_all(tmp_path)) == 4


def test_a_run_with_nothing_to_remove_succeeds(tmp_path: Path) -> None:
    """Else the alert for a job that has not succeeded for long would fire on every small folder."""
    assert run_recorded("prune", make_settings(tmp_path)) == 0
    (run,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert (run.state, run.outcome["bytes"]) == (State.SUCCEEDED, 0)


def test_a_run_that_cannot_read_a_release_fails_and_names_it(tmp_path: Path) -> None:
    make_releases(tmp_path, 1)
    (tmp_path / "releases" / "r0000" / "manifest.json").write_text("{")
    assert run_recorded("prune", make_settings(tmp_path)) == 1
    (run,) = Ledger(tmp_path / "ledger.sqlite").runs()
    assert "r0000/manifest.json: cannot be read" in run.outcome["detail"]


def test_only_jobs_whose_process_holds_their_lock_are_in_progress(tmp_path: Path) -> None:
    assert find_in_use(tmp_path) == NOBODY
    assert list(tmp_path.iterdir()) == [], "asking makes no ledger"
    ledger = Ledger(tmp_path / "ledger.sqlite", lambda: 500.0)
    ledger.begin("prune", os.getpid())
    ledger.begin("policy", os.getpid())
    assert find_in_use(tmp_path) == NOBODY, "its process was killed"
    with hold_kind(tmp_path, "policy"):
        assert find_in_use(tmp_path).since == 500.0


def test_a_job_that_starts_while_artifacts_are_listed_finds_what_it_reads(tmp_path: Path) -> None:
    """The ledger is read after the artifacts: a job that started before is seen, one that starts later reads what is newest."""
    old = make_artifact(tmp_path, "predictor")
    settings, later = make_settings(tmp_path), lambda: old.stat().st_mtime + 60 * DAY_S
    (choice,) = preview(settings, later)
    assert choice.stays
    make_artifact(tmp_path, "predictor")
    ledger = Ledger(tmp_path / "ledger.sqlite", lambda: old.stat().st_mtime)
    with hold_kind(tmp_path, "policy"):
        ledger.begin("policy", os.getpid())
        assert all(one.stays for one in remove(settings, later))
    ledger.fail_lost("policy")
    assert [one.stays for one in remove(settings, later)] == [False, True]
    assert registry.list_releases(tmp_path) == []
