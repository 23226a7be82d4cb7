"""Job processes: how one is started, limited to one of a kind, and recorded, whatever way it ends.

A job runs as `python -m trainers job KIND`, so that its memory is freed when it ends and a crash affects nothing else. Its
starter waits for its end: a job that could not record its own end is recorded as failed.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from streams.runtime.processes import KEEP_BUFFERS, Child
from trainers.jobs.ledger import Kind, Ledger, Run, State

BUSY = 4
"""Exit code of a job process while another run of its kind is in progress."""
# Idle OpenMP threads must sleep: on busy cores spinning ones made a training step eight times slower.
ENVIRON = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    **KEEP_BUFFERS,
    "PYTHONUNBUFFERED": "1",
}


def start_job(ledger: Ledger, run: Run, data_dir: Path, environ: Mapping[str, str] | None = None) -> Child:
    """Start the process of a requested run; its output goes to a log file, which the ledger names."""
    log = data_dir / "logs" / f"job-{run.kind}-{run.id}.log"
    ledger.set_log(run.id, log)
    command = [sys.executable, "-m", "trainers", "job", run.kind, "--run", str(run.id)]
    return Child(f"{run.kind} job (run {run.id})", command, log, {**ENVIRON, **(os.environ if environ is None else environ)})


def record_end(ledger: Ledger, run: int, child: Child) -> Run:
    """Record a run whose process ended without a record: failed, or skipped where its kind was in progress."""
    code = child.returncode
    if code == BUSY:
        ledger.finish(run, State.SKIPPED, {"detail": "another run of this kind is in progress"})
    else:
        ending = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
        ledger.finish(run, State.FAILED, {"detail": f"its process {ending}; the last lines are in {child.log}"})
    return ledger.run(run)


@contextmanager
def hold_kind(data_dir: Path, kind: Kind) -> Iterator[bool]:
    """Hold the lock of a kind of job during the block; yields False when another process has it. It ends with its holder."""
    folder = data_dir / "run"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"job-{kind}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def record(ledger: Ledger, run: Run) -> Iterator[None]:
    """Record an exception that ends the block as the run's failure, and raise it again."""
    try:
        yield
    except BaseException as error:
        detail = "stopped" if isinstance(error, SystemExit | KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        ledger.finish(run.id, State.FAILED, {"detail": detail})
        raise


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
