"""`queryloop run`: runs a training job now, by the timetable's daemon where one is running, else in a process of its own."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from queryloop.exits import Exit
from queryloop.settings import Settings, read_settings
from streams.runtime.environment import to_environ
from trainers.jobs.ledger import Kind, Ledger, Run, State
from trainers.jobs.processes import record_end, start_job

POLL_S = 0.3
TAIL_BYTES = 2000
CODES = {State.SUCCEEDED: Exit.DONE, State.SKIPPED: Exit.SKIPPED, State.FAILED: Exit.FAILED}


def run(options: argparse.Namespace) -> int:
    """Run the chosen job. Raises SettingsError, LedgerError."""
    return run_job(read_settings(options), options.kind, as_json=options.json)


def run_job(settings: Settings, kind: Kind, *, as_json: bool) -> int:
    """Run a job to its end and print its outcome; return the exit code of its state."""
    ledger = Ledger(settings.data.dir / "ledger.sqlite")
    run = _follow_daemon(ledger, kind) if ledger.daemon_lives() else _run_here(ledger, kind, settings)
    if as_json:
        print(json.dumps({"run": run.id, "kind": run.kind, "state": run.state, "outcome": run.outcome, "log": run.log}, indent=2))
    else:
        Console().print(describe_run(run), soft_wrap=True)
    return CODES.get(run.state, Exit.FAILED)


def describe_run(run: Run) -> str:
    """Return a run in one line of rich markup."""
    took = f" in {run.ended_at - run.started_at:.0f} s" if run.ended_at and run.started_at else ""
    figures = {key: value for key, value in run.outcome.items() if key != "detail" and not isinstance(value, dict | list)}
    shown = ", ".join(f"{key} {_short(value)}" for key, value in figures.items() if value is not None)
    outcome = " - ".join(filter(None, (str(run.outcome.get("detail", "")), shown)))
    return escape(f"{run.kind} job {run.id} {run.state}{took}" + (f": {outcome}" if outcome else ""))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _follow_daemon(ledger: Ledger, kind: Kind) -> Run:
    """Request a run of the daemon and wait for its end; when the daemon dies, return the run as it is recorded."""
    number = ledger.request(kind)
    pause = time.sleep
    with _StatusLine(ledger, number) as show:
        while not (run := ledger.run(number)).ended and ledger.daemon_lives():
            show()
            pause(POLL_S)
    return run


def _run_here(ledger: Ledger, kind: Kind, settings: Settings) -> Run:
    number = ledger.request(kind)
    child = start_job(ledger, ledger.run(number), settings.data.dir, to_environ(settings))
    try:
        with _StatusLine(ledger, number) as show:
            while child.sleep(POLL_S) is None:
                show()
    finally:
        child.stop()
    return record_end(ledger, number, child)


class _StatusLine:
    """Shows a line on the terminal with the elapsed time and the last line of the run's log."""

    def __init__(self, ledger: Ledger, number: int) -> None:
        self._ledger, self._number, self._since = ledger, number, time.monotonic()
        self._status = Console(stderr=True).status(f"run {number} starts")

    def __enter__(self) -> Callable[[], None]:
        self._status.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def _show(self) -> None:
        run = self._ledger.run(self._number)
        elapsed = time.monotonic() - self._since
        self._status.update(escape(f"{run.kind} job {run.id} {run.state}, {elapsed:.0f} s  {_last_line(run.log)}"))


def _last_line(log: str | None) -> str:
    """Return the end of a log as printable text of at most 100 characters."""
    path = Path(log) if log else None
    if path is None or not path.exists():
        return ""
    lines = path.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").replace("\r", "\n").strip().splitlines()
    return "".join(c for c in lines[-1] if c.isprintable())[:100] if lines else ""
