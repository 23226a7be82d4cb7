"""Job processes: one of a kind at a time, and every end is recorded, kills included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from streams.runtime.processes import Child
from trainers.jobs.ledger import Ledger, State
from trainers.jobs.processes import BUSY, hold_kind, record, record_end, start_job


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


def environ(folder: Path) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if not name.startswith("QUERYLOOP_")}
    return {**bare, "QUERYLOOP_DATA_DIR": str(folder), "QUERYLOOP_CONFIG": os.devnull, "QUERYLOOP_TIMETABLE_PORT": "0"}


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def test_a_kind_is_held_by_one(tmp_path: Path) -> None:
    with hold_kind(tmp_path, "ctr") as first, hold_kind(tmp_path, "ctr") as second, hold_kind(tmp_path, "index") as other:
        assert (first, second, other) == (True, False, True)
    with hold_kind(tmp_path, "ctr") as again:
        assert again


def test_a_killed_holder_frees_the_lock(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from trainers.jobs.processes import hold_kind
with hold_kind(Path({str(tmp_path)!r}), "policy") as mine:
    print(mine, flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with hold_kind(tmp_path, "policy") as mine:
            assert not mine
        holder.kill()
        holder.wait()
    with hold_kind(tmp_path, "policy") as mine:
        assert mine


@pytest.mark.parametrize(
    ("error", "detail"),
    [(ValueError("no lists"), "ValueError: no lists"), (SystemExit(143), "stopped"), (KeyboardInterrupt(), "stopped")],
)
def test_an_exception_is_recorded_and_raised_again(ledger: Ledger, error: BaseException, detail: str) -> None:
    run = ledger.start(ledger.request("ctr"), os.getpid())
    with pytest.raises(type(error)), record(ledger, run):
        raise error
    assert (ledger.run(run.id).state, ledger.run(run.id).outcome) == (State.FAILED, {"detail": detail})


@pytest.mark.parametrize(
    ("command", "state", "detail"),
    [
        ("import os; os.kill(os.getpid(), 9)", State.FAILED, "was killed by signal 9"),
        ("import sys; sys.exit(3)", State.FAILED, "ended with code 3"),
        (f"import sys; sys.exit({BUSY})", State.SKIPPED, "another run of this kind"),
    ],
)
def test_the_starter_records_an_end_that_the_job_did_not_record(
    ledger: Ledger, tmp_path: Path, command: str, state: State, detail: str
) -> None:
    run = ledger.request("policy")
    child = Child("job", [sys.executable, "-c", command], tmp_path / "job.log")
    wait_for(lambda: child.returncode is not None)
    ended = record_end(ledger, run, child)
    assert ended.state is state
    assert detail in ended.outcome["detail"]


def test_a_job_process_skips_on_an_empty_lake_and_says_why(ledger: Ledger, tmp_path: Path) -> None:
    run = ledger.run(ledger.request("index"))
    child = start_job(ledger, run, tmp_path, environ(tmp_path))
    wait_for(lambda: child.returncode is not None)
    ended = record_end(ledger, run.id, child)
    assert (child.returncode, ended.state, ended.pid) == (5, State.SKIPPED, child.pid)
    assert "no day yet" in ended.outcome["detail"]
    assert ended.log == str(tmp_path / "logs" / f"job-index-{run.id}.log")


def test_a_job_process_whose_kind_is_in_progress_leaves_the_other_alone(ledger: Ledger, tmp_path: Path) -> None:
    run = ledger.run(ledger.request("ctr"))
    with hold_kind(tmp_path, "ctr"):
        child = start_job(ledger, run, tmp_path, environ(tmp_path))
        wait_for(lambda: child.returncode is not None)
    assert child.returncode == BUSY
    assert record_end(ledger, run.id, child).state is State.SKIPPED


def test_a_settings_typo_fails_the_run_and_is_in_its_log(ledger: Ledger, tmp_path: Path) -> None:
    run = ledger.run(ledger.request("ctr"))
    child = start_job(ledger, run, tmp_path, {**environ(tmp_path), "QUERYLOOP_CTR_EPOCS": "3"})
    wait_for(lambda: child.returncode is not None)
    ended = record_end(ledger, run.id, child)
    assert ended.state is State.FAILED
    assert "did you mean epochs" in child.tail()
    assert str(child.log) in ended.outcome["detail"]


def test_alive_follows_the_heartbeat(ledger: Ledger, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trainers", "alive"]
    silent = subprocess.run(command, env=environ(tmp_path), capture_output=True, text=True, check=False)
    assert (silent.returncode, "never written a heartbeat" in silent.stderr) == (1, True)
    ledger.beat(os.getpid())
    assert subprocess.run(command, env=environ(tmp_path), check=False).returncode == 0


def test_the_daemon_runs_what_is_requested_and_stops_cleanly(ledger: Ledger, tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    with Child("daemon", [sys.executable, "-m", "trainers"], log, environ(tmp_path)) as daemon:
        wait_for(ledger.daemon_lives)
        number = ledger.request("index")
        wait_for(lambda: ledger.run(number).ended)
        assert ledger.run(number).state is State.SKIPPED
        os.kill(daemon.pid, signal.SIGTERM)
        wait_for(lambda: daemon.returncode is not None)
    assert (daemon.returncode, ledger.heartbeat()) == (0, None)
    assert "event=timetable_stopped" in log.read_text()
