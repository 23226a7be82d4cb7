"""Prunes a data folder: lists what would go, or removes it step by step so that a kill at any point harms nothing.

First goes what needs no record (what a killed process left, old logs of jobs), so that a full disk has room for the records.
Then, under the lock of the releases, all that goes is recorded and hidden at once; the slow part, deleting, needs no lock.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.releases import registry
from streams.runtime.artifact_removal import HIDDEN, delete, delete_tree, hide
from streams.runtime.audit import append_audit, find_actor
from trainers.pruning.decisions import DAY_S, Choice, InUse, Rules, decide
from trainers.pruning.inventory import Left, list_job_logs, list_left, list_process_logs, read_inventory
from trainers.pruning.settings import PruneSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A data folder, its settings, the base that the settings name, and who reports the jobs in progress.

    `find_in_use` is called after the artifacts are listed: a job that starts later finds what is newest then."""

    root: Path
    settings: PruneSettings
    base: str
    find_in_use: Callable[[], InUse]
    clock: Callable[[], float]


def list_choices(place: Place) -> list[Choice]:
    """Return what a run would remove now, and what would stay. Raises ReleaseError, OSError."""
    return [*_choose_published(place), *_choose_left(place), *_choose_logs(place)]


def prune(place: Place) -> list[Choice]:
    """Remove what nobody needs, and return it with what stays. Only for the holder of the lock of the job `prune`.

    Raises ReleaseError where a release cannot be read, and OSError, which names the file: run it again, it goes on there."""
    left = _choose_left(place)
    for choice in _going(left):
        _remove_left(choice)
    with registry.lock(place.root):
        published = _choose_published(place)
        hidden = _withdraw(place, _going(published))
    for choice, path in hidden:
        delete(path)
        log.info("event=pruned kind=%s artifact=%s bytes=%d", choice.what, choice.name, choice.bytes)
    logs = _choose_logs(place)
    for choice in _going(logs):
        _begin_anew(choice.path)
    return [*published, *left, *logs]


def _going(choices: list[Choice]) -> list[Choice]:
    return [one for one in choices if not one.stays]


def _choose_published(place: Place) -> list[Choice]:
    inventory = read_inventory(place.root)
    named = frozenset({Path(place.base).resolve()})
    return decide(inventory, place.root, Rules(place.settings, place.clock(), place.find_in_use(), named))


def _choose_left(place: Place) -> list[Choice]:
    """Return what can be removed without a record."""
    now, since = place.clock(), place.find_in_use().since
    left = [_to_choice(place, "leftover", one, one.about) for one in list_left(place.root, since, now)]
    logs = []
    for one in list_job_logs(place.root):
        days = max(now - one.changed, 0.0) / DAY_S
        if days >= place.settings.keep_days and one.changed < since:
            logs.append(_to_choice(place, "log", one, f"{one.about} {days:.0f} days ago"))
    return [*left, *logs]


def _choose_logs(place: Place) -> list[Choice]:
    """Return the logs of processes that are too large."""
    limit = place.settings.log_bytes
    large = [one for one in list_process_logs(place.root) if one.bytes > limit]
    return [_to_choice(place, "log", one, f"over {limit} bytes (prune.log_bytes): moved to {one.path.name}.1") for one in large]


def _to_choice(place: Place, what: str, left: Left, why: str) -> Choice:
    name = left.path.relative_to(place.root).as_posix()
    return Choice(what, name, left.path, left.bytes, left.changed, False, why)


def _withdraw(place: Place, going: list[Choice]) -> list[tuple[Choice, Path]]:
    """Record what goes, refuse its releases from now on, and hide its artifacts; return these with their hidden folders."""
    if not going:
        return []
    actor = find_actor()
    releases = [one for one in going if one.what == "release"]
    gone = [one for one in going if one.what != "release"]
    what = {"releases": [one.name for one in releases], "artifacts": [f"{one.what}/{one.name}" for one in gone]}
    append_audit(place.root, "prune", {**what, "by": actor.by, "run": actor.run}, place.clock)
    for choice in releases:
        registry.mark_pruned(registry.read_release(place.root, choice.name), place.clock)
    return [(one, hide(one.path)) for one in gone]


def _remove_left(choice: Choice) -> None:
    if choice.path.name.endswith(HIDDEN):
        delete(choice.path)
    else:
        delete_tree(choice.path)
    log.info("event=leftover_removed path=%s bytes=%d", choice.path, choice.bytes)


def _begin_anew(path: Path) -> None:
    """Move what is in a log to NAME.log.1, and empty it: its process has it open and goes on writing at its end.

    Lines that are written between the two steps are lost, as with logrotate's copytruncate."""
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    with path.open("r+b") as file:
        file.truncate()
    log.info("event=log_begun_anew path=%s", path)
