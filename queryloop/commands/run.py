"""`queryloop run`: runs a training job now, by the timetable's daemon where one is running, else in a process of its own."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from queryloop.commands.job_progress import JobProgress
from queryloop.exits import CommandError, Exit
from queryloop.output import print_answer
from queryloop.settings import Settings, read_settings
from queryloop.tables import print_line
from streams.runtime.environment import to_environ
from streams.runtime.settings_records import find_differences, read_record
from trainers.jobs.ledger import Kind, Ledger, Run, State
from trainers.jobs.processes import record_end, start_job
from trainers.jobs.run_options import RunOptions
from trainers.jobs.settings import affects_jobs

POLL_S = 0.3
NO_OPTIONS = RunOptions()
CODES = {State.SUCCEEDED: Exit.DONE, State.SKIPPED: Exit.SKIPPED, State.FAILED: Exit.FAILED}


def run(options: argparse.Namespace) -> int:
    """Run the chosen job. Raises SettingsError, LedgerError."""
    chosen = RunOptions(options.from_base, options.force)
    if chosen.record() and options.kind != "policy":
        raise CommandError(f"--from-base and --force go with `run policy`, not with `run {options.kind}`", Exit.USAGE)
    own = options.with_daemon_settings
    return run_job(read_settings(options), options.kind, as_json=options.json, daemons_own=own, chosen=chosen)


def run_job(settings: Settings, kind: Kind, *, as_json: bool, daemons_own: bool = False, chosen: RunOptions = NO_OPTIONS) -> int:
    """Run a job to its end and print its outcome; return the exit code of its state.

    A daemon runs it on the settings that it started with: raises CommandError where they differ, unless `daemons_own`."""
    ledger = Ledger(settings.data.dir / "ledger.sqlite")
    if ledger.daemon_lives():
        if not daemons_own:
            refuse_other_settings(settings)
        run = _follow_daemon(ledger, kind, chosen)
    else:
        run = _run_here(ledger, kind, settings, chosen)
    if as_json:
        print_answer(run_as_json(run) | {"log": run.log})
    else:
        print_line(describe_run(run))
    return CODES.get(run.state, Exit.FAILED)


def refuse_other_settings(settings: Settings) -> None:
    """Raise CommandError when the trainers' daemon runs on other settings of the jobs than these."""
    record = read_record(settings.data.dir, "trainers")
    found = find_differences(record, settings) if record else {}
    others = {key: values for key, values in found.items() if affects_jobs(key)}
    if record is None or not others:
        return
    named = "; ".join(f"{key} = {json.dumps(now)}, the daemon has {json.dumps(before)}" for key, (before, now) in others.items())
    raise CommandError(
        f"the trainers' daemon (process {record.pid}) runs on settings of {record.file or 'no file'}, read at "
        f"{record.read_at.isoformat(timespec='seconds')}; these differ now: {named}. Start `queryloop up` or "
        "`python -m trainers` again, or run with --with-daemon-settings",
        Exit.USAGE,
    )


def run_as_json(run: Run) -> dict[str, Any]:
    """Return a run as `run` and `status` print it with --json."""
    times = {"started_ts": run.started_at, "ended_ts": run.ended_at}
    return {"run": run.id, "kind": run.kind, "state": run.state, **times, "outcome": run.outcome}


def describe_run(run: Run) -> str:
    """Return a run in one line."""
    took = f" in {run.ended_at - run.started_at:.0f} s" if run.ended_at and run.started_at else ""
    figures = {key: value for key, value in run.outcome.items() if key != "detail" and not isinstance(value, dict | list)}
    shown = ", ".join(f"{key} {_short(value)}" for key, value in figures.items() if value is not None)
    outcome = " - ".join(filter(None, (str(run.outcome.get("detail", "")), shown)))
    return f"{run.kind} job {run.id} {run.state}{took}" + (f": {outcome}" if outcome else "")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _follow_daemon(ledger: Ledger, kind: Kind, chosen: RunOptions) -> Run:
    """Request a run of the daemon and wait for its end; when the daemon dies, return the run as it is recorded."""
    number = ledger.request(kind, chosen.record())
    pause = time.sleep
    with JobProgress(ledger, number) as show:
        while not (run := ledger.run(number)).ended and ledger.daemon_lives():
            show()
            pause(POLL_S)
    return run


def _run_here(ledger: Ledger, kind: Kind, settings: Settings, chosen: RunOptions) -> Run:
    number = ledger.request(kind, chosen.record())
    child = start_job(ledger, ledger.run(number), settings.data.dir, to_environ(settings))
    try:
        with JobProgress(ledger, number) as show:
            while child.sleep(POLL_S) is None:
                show()
    finally:
        child.stop()
    return record_end(ledger, number, child)
