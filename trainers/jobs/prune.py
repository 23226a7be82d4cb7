"""The job `prune`: removes artifacts and releases that nobody needs any more, what killed processes left, and old logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving.releases.registry import ReleaseError
from trainers.jobs.ledger import Ledger, Run
from trainers.jobs.outcomes import JobError, Outcome
from trainers.jobs.processes import hold_kind
from trainers.jobs.settings import TrainerSettings
from trainers.pruning.decisions import NOBODY, Choice, InUse
from trainers.pruning.removal import Place, list_choices, prune


def run(settings: TrainerSettings) -> Outcome:
    """Remove what the section `prune` does not keep. Raises JobError, which names the file that could not be removed or read."""
    return describe(remove(settings))


def remove(settings: TrainerSettings, clock: Callable[[], float] = time.time) -> list[Choice]:
    """Prune the data folder; return what went and what stays. Only for the holder of the job's lock. Raises JobError."""
    try:
        return prune(_find_place(settings, clock))
    except ReleaseError as error:
        raise JobError(str(error)) from error
    except OSError as error:
        raise JobError(f"pruning stopped: {error}; put that right and run it again: it goes on there") from error


def preview(settings: TrainerSettings, clock: Callable[[], float] = time.time) -> list[Choice]:
    """Return what a run would remove, and what would stay; nothing is changed. Raises ReleaseError, OSError."""
    return list_choices(_find_place(settings, clock))


def describe(choices: Sequence[Choice]) -> Outcome:
    """Return what went in numbers: bytes, releases, artifacts, leftovers and logs."""
    gone = [one for one in choices if not one.stays]
    count = {what: sum(one.what == what for one in gone) for what in ("release", "leftover", "log")}
    artifacts = len(gone) - sum(count.values())
    figures: dict[str, Any] = {
        "bytes": sum(one.bytes for one in gone),
        "releases": count["release"],
        "artifacts": artifacts,
        "leftovers": count["leftover"],
        "logs": count["log"],
    }
    return Outcome("removed what nobody needs" if gone else "nothing to remove", figures)


def find_in_use(data_dir: Path) -> InUse:
    """Return the first of the other jobs that are in progress. A run whose process was killed is not."""
    ledger = data_dir / "ledger.sqlite"
    found = Ledger(ledger).running() if ledger.exists() else []
    running = [one for one in found if one.kind != "prune" and not _is_lost(data_dir, one)]
    if not running:
        return NOBODY
    first = running[0]
    return InUse(first.started_at or 0.0, f"run {first.id} ({first.kind}), in progress,")


def _find_place(settings: TrainerSettings, clock: Callable[[], float]) -> Place:
    root = settings.data.dir
    return Place(root, settings.prune, settings.policy.base, lambda: find_in_use(root), clock)


def _is_lost(data_dir: Path, run: Run) -> bool:
    """Return whether nobody holds the lock of a running run's kind, which its process holds until it ends."""
    with hold_kind(data_dir, run.kind) as mine:
        return mine
