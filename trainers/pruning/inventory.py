"""What there is to prune: artifacts, releases, and what a killed process or an ended job left, with sizes and times."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path

from serving.releases import registry
from serving.releases.registry import Release, ReleaseError, Rollout
from streams.runtime.artifact_removal import list_hidden, list_unfinished
from streams.runtime.artifacts import MANIFEST, ArtifactError, Manifest, list_folders, read_manifest

LEFT_S = 86_400.0
"""Seconds without a change after which a temporary folder counts as left by a process that was killed."""


@dataclass(frozen=True)
class Stored:
    """A published artifact: bytes of all its files, the time it was made (epoch seconds), the id of the base that it names."""

    kind: str
    id: str
    path: Path
    bytes: int
    made: float
    base: str | None


@dataclass(frozen=True)
class Left:
    """A file or folder that is no artifact: `about` says what it is; bytes, and the time of its last change (epoch seconds)."""

    path: Path
    about: str
    bytes: int
    changed: float


@dataclass(frozen=True)
class Inventory:
    """Artifacts, releases that are not pruned, the rollout, and when each release was last live (epoch seconds).

    `unreadable` are artifact folders whose manifest cannot be read, with what is wrong: nobody knows what they are."""

    artifacts: tuple[Stored, ...]
    releases: tuple[Release, ...]
    rollout: Rollout
    last_live: dict[str, float]
    unreadable: dict[Path, str]


def read_inventory(root: Path) -> Inventory:
    """Read what is in the data folder. Raises ReleaseError when a release, or the rollout, cannot be read: what it needs is
    not known then."""
    for broken in registry.list_broken(root):
        raise ReleaseError(
            f"nothing is pruned, because it is not known what a release that cannot be read needs: {broken}; restore the file, "
            "or move the release's folder away"
        )
    found: list[Stored] = []
    unreadable: dict[Path, str] = {}
    for folder in list_folders(root / "artifacts"):
        try:
            found.append(_describe(folder, read_manifest(folder)))
        except ArtifactError as error:
            unreadable[folder] = str(error)
    releases = tuple(one for one in registry.list_releases(root) if one.pruned is None)
    return Inventory(tuple(found), releases, registry.read_rollout(root), _read_last_live(root), unreadable)


def list_left(root: Path, since: float, now: float) -> list[Left]:
    """Return what processes that were killed left: folders whose removal was begun, and temporary ones that are older than a
    day and than `since`, the start of the first job that is running."""
    begun = [_describe_left(path, "its removal was begun") for path in list_hidden(root / "artifacts")]
    temporary = [
        *list_unfinished(root / "artifacts"),
        *(root / "run").glob("verify-*"),
        *(root / "run" / "exports").glob("*/*"),
    ]
    left = [_describe_left(path, "left by a process that was killed") for path in sorted(temporary)]
    return begun + [one for one in left if one.changed < min(since, now - LEFT_S)]


def list_job_logs(root: Path) -> list[Left]:
    """Return the logs of job runs."""
    return [_describe_left(path, "the log of a job that ended") for path in sorted((root / "logs").glob("job-*.log"))]


def list_process_logs(root: Path) -> list[Left]:
    """Return the logs of the processes that `queryloop up` runs."""
    logs = [path for path in sorted((root / "logs").glob("*.log")) if not path.name.startswith("job-")]
    return [_describe_left(path, "the log of a process") for path in logs]


def _describe(folder: Path, manifest: Manifest) -> Stored:
    size = sum(file.bytes for file in manifest.files.values()) + (folder / MANIFEST).stat().st_size
    base = manifest.meta.get("base")
    named = Path(base).name if isinstance(base, str) else None
    return Stored(folder.parent.name, folder.name, folder, size, manifest.created.timestamp(), named)


def _describe_left(path: Path, about: str) -> Left:
    states = list(_read_states(path))
    size = sum(state.st_size for state in states if stat.S_ISREG(state.st_mode))
    return Left(path, about, size, max((state.st_mtime for state in states), default=inf))


def _read_states(path: Path) -> Iterator[os.stat_result]:
    """Yield the state of a file, or of a folder and all in it; what is removed meanwhile is left out."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    for one in (path, *inside):
        with suppress(FileNotFoundError):
            yield one.lstat()


def _read_last_live(root: Path) -> dict[str, float]:
    """Return when each release that was live, and is not now, was replaced."""
    changes, _ = registry.read_history(root)
    return {str(one["before"]): datetime.fromisoformat(one["ts"]).timestamp() for one in changes if one.get("before")}
