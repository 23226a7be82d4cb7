"""Runs a job by name, with what every job process does around it: lock, ledger, outcome."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from types import ModuleType

from serving.models_extra import ModelsMissing
from streams.runtime.audit import Actor, acting
from trainers.jobs.ledger import Kind, Ledger, State
from trainers.jobs.outcomes import JobError, Outcome, Skipped
from trainers.jobs.processes import BUSY, hold_kind, record
from trainers.jobs.run_options import RunOptions
from trainers.jobs.settings import TrainerSettings
from trainers.policy.base_folder import BaseFault
from trainers.policy.memory import MemoryFault
from trainers.policy.micro_batches import TooLong
from trainers.policy.ranks import RankFault

log = logging.getLogger(__name__)
EXIT_CODES = {State.SUCCEEDED: 0, State.FAILED: 1, State.SKIPPED: 5}


def run(kind: Kind, settings: TrainerSettings, options: RunOptions | None = None) -> Outcome:
    """Run the job in this process; only the job `policy` has options.

    Raises Skipped and JobError with a text for people, and whatever a defect raises."""
    job = _find(kind)
    outcome: Outcome = job.run(settings) if options is None or kind != "policy" else job.run(settings, options)
    return outcome


def _find(kind: Kind) -> ModuleType:
    return import_module(f"trainers.jobs.{kind}")


def run_recorded(kind: Kind, settings: TrainerSettings, run_id: int | None = None) -> int:
    """Run the job under its kind's lock and record it as `run_id`, or as a run of its own.

    Exit code of the process: 0 succeeded, 1 failed, 4 its kind is in progress, 5 skipped. A crash is recorded and raised."""
    ledger = Ledger(settings.data.dir / "ledger.sqlite")
    with hold_kind(settings.data.dir, kind) as mine:
        if not mine:
            print(f"{kind}: another run of this kind is in progress", file=sys.stderr)
            return BUSY
        for lost in ledger.fail_lost(kind):
            log.warning("event=run_lost run=%d kind=%s", lost, kind)
        begun = ledger.start(ledger.request(kind) if run_id is None else run_id, os.getpid())
        with record(ledger, begun), acting(Actor(f"job {kind}", begun.id)):
            state, outcome = _attempt(kind, settings, RunOptions.read(ledger.options(begun.id)))
        ledger.finish(begun.id, state, outcome.record())
    log.info("event=job_ended kind=%s run=%d state=%s detail=%r", kind, begun.id, state, outcome.detail)
    return EXIT_CODES[state]


def _attempt(kind: Kind, settings: TrainerSettings, options: RunOptions) -> tuple[State, Outcome]:
    try:
        return State.SUCCEEDED, run(kind, settings, options)
    except Skipped as reason:
        return State.SKIPPED, Outcome(str(reason))
    except (JobError, BaseFault, MemoryFault, ModelsMissing, RankFault, TooLong) as error:
        return State.FAILED, Outcome(str(error))
