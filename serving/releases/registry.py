"""Releases: which policy, predictor and index go live together, and which release is live.

A release is an immutable folder `releases/<id>` in the data folder. Its manifest names artifact folders, relative to the data
folder, with the checksum of each one's own manifest, so no part can be replaced unnoticed. `releases/rollout.json` names
the champion and is replaced atomically; who changed it, and when, is in the data folder's `audit.jsonl`. A release folder
is never deleted: a pruned release, whose artifacts are removed, keeps its manifest and gets a `pruned.json` beside it.
"""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from serving.policy.engines.adapters import find_base
from streams.runtime import artifacts
from streams.runtime.atomic_files import new_folder, replace_file
from streams.runtime.audit import append_audit, find_actor, read_audit

_T = TypeVar("_T")
_MANIFEST = "manifest.json"
_ROLLOUT = "rollout.json"
_PRUNED = "pruned.json"
_REJECTED = "rejected.json"
_ID = re.compile(r"r\d{4,}")
PARTS = ("policy", "base", "predictor", "judge", "index")
"""`base`: the weights that an adapter is merged into; a policy with its own weights has none."""


class ReleaseError(RuntimeError):
    """A release that is missing, incomplete or changed, or a rollout step that is not possible; the text names the file."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One artifact of a release: its folder relative to the data folder, and the SHA-256 of the manifest in it."""

    path: str
    sha256: str


class Pruned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When the artifacts of a release were removed, by whom, and in which run of the job."""

    ts: datetime
    by: str
    run: int | None


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    created: datetime
    parts: dict[str, Part]
    gate: dict[str, Any]
    meta: dict[str, Any]


@dataclass(frozen=True)
class Release:
    """A published release. The artifact folders are full paths; only the policy is always there. `gate` is the gate's record.

    The folders of a `pruned` release are no longer needed by it, and gone or about to be."""

    id: str
    path: Path
    policy: Path
    base: Path | None
    predictor: Path | None
    judge: Path | None
    index: Path | None
    gate: dict[str, Any]
    created: datetime
    meta: dict[str, Any]
    parts: Mapping[str, Part]
    pruned: Pruned | None = None


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which release is live, which one waits for the gate, and which one was live before."""

    champion: str | None = None
    challenger: str | None = None
    previous: str | None = None


class Rejection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a release was taken out for good, by whom, and why where that was said."""

    ts: datetime
    by: str
    run: int | None = None
    reason: str | None = None


def publish(
    root: Path,
    *,
    policy: Path,
    predictor: Path | None = None,
    judge: Path | None = None,
    index: Path | None = None,
    gate: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Release:
    """Publish a release of artifacts in the data folder `root`, under the next id; the rollout is not changed.

    `meta` gets who published it, as `by`, and the `run` of a job.

    Raises ReleaseError for an artifact outside `root`, ArtifactError for one that is incomplete."""
    folders = {"policy": policy, "base": _find_base(policy), "predictor": predictor, "judge": judge, "index": index}
    releases, actor = root / "releases", find_actor()
    made = {"by": actor.by, "run": actor.run, **(meta or {})}
    with lock(root):  # an artifact that is read here is not pruned before the release that needs it is there
        parts = {kind: _describe_part(root, folder) for kind, folder in folders.items() if folder is not None}
        name = _next_id(releases)
        manifest = _Manifest(name, datetime.now(UTC), parts, dict(gate or {}), made)
        with new_folder(releases / name) as folder:
            (folder / _MANIFEST).write_bytes(_encode(manifest))
    return read_release(root, name)


def read_release(root: Path, name: str) -> Release:
    """Return the release of that id. Its artifacts are not checked (see `verify`). Raises ReleaseError naming the file."""
    if not _ID.fullmatch(name):
        raise ReleaseError(f"{name!r} is no release id (r0000, r0001, …)")
    path = root / "releases" / name
    manifest = _read(path / _MANIFEST, _Manifest)
    if manifest.id != name or "policy" not in manifest.parts or not manifest.parts.keys() <= set(PARTS):
        raise ReleaseError(f"{path / _MANIFEST}: is not the manifest of release {name}")
    folders = {kind: root / part.path for kind, part in manifest.parts.items()}
    optional = {kind: folders.get(kind) for kind in PARTS if kind != "policy"}
    return Release(
        name,
        path,
        folders["policy"],
        gate=manifest.gate,
        created=manifest.created,
        meta=manifest.meta,
        parts=manifest.parts,
        pruned=_read(path / _PRUNED, Pruned) if (path / _PRUNED).exists() else None,
        **optional,
    )


def verify(root: Path, release: Release) -> None:
    """Read every byte of a release and compare checksums. Raises ReleaseError naming the file that is missing or changed."""
    _refuse_pruned(release)
    base = root.resolve()
    for kind, part in release.parts.items():
        folder = (root / part.path).resolve()
        if not folder.is_relative_to(base):
            raise ReleaseError(f"{release.path / _MANIFEST}: its {kind} is outside the data folder: {part.path}")
        try:
            artifacts.load(folder)
            found = artifacts.digest(folder / artifacts.MANIFEST)
        except (artifacts.ArtifactError, OSError) as error:
            raise ReleaseError(f"release {release.id}, {kind}: {error}") from error
        if found != part.sha256:
            raise ReleaseError(f"release {release.id}, {kind}: {folder / artifacts.MANIFEST} is not the one that was published")


def list_releases(root: Path) -> list[Release]:
    """Return all readable releases, oldest first. `list_broken` has the others."""
    return [found for found in _scan(root) if isinstance(found, Release)]


def list_broken(root: Path) -> list[ReleaseError]:
    """Return what is wrong with each release folder that cannot be read."""
    return [found for found in _scan(root) if isinstance(found, ReleaseError)]


def read_rollout(root: Path) -> Rollout:
    """Return the rollout; all None before the first one. Raises ReleaseError when the file is damaged."""
    path = root / "releases" / _ROLLOUT
    return _read(path, Rollout) if path.exists() else Rollout()


def promote(root: Path, name: str, *, force: bool = False) -> Rollout:
    """Make a release champion; the champion so far becomes previous. Promoting the champion changes nothing.

    Raises ReleaseError for one that was rejected or that its gate refused; with `force` it is promoted, and no longer rejected.
    That force overruled a rejection or a gate is recorded."""
    with _change(root) as rollout:
        release = read_release(root, name)
        _refuse_pruned(release)
        if rollout.champion == name:
            return rollout
        rejected = _refuse_rejected(root, name, force=force)
        failed = _refuse_failed(release, force=force)
        waiting = None if rollout.challenger == name else rollout.challenger
        _record(root, "promote", name, rollout, forced=True if rejected or failed else None)
        if rejected:
            _replace_rejected(root, {other: one for other, one in read_rejected(root).items() if other != name})
        return _replace_rollout(root, Rollout(champion=name, challenger=waiting, previous=rollout.champion))


def propose(root: Path, name: str | None) -> Rollout:
    """Name the challenger (None: there is none)."""
    with _change(root) as rollout:
        if name is not None:
            _refuse_pruned(read_release(root, name))
            _refuse_rejected(root, name, force=False)
        return _replace_rollout(root, Rollout(champion=rollout.champion, challenger=name, previous=rollout.previous))


def rollback(root: Path) -> Rollout:
    """Make the previous release champion again; a second rollback undoes the first. Raises ReleaseError when there is none."""
    with _change(root) as rollout:
        if rollout.previous is None:
            raise ReleaseError(f"{root / 'releases' / _ROLLOUT}: there is no previous release to go back to")
        _refuse_pruned(read_release(root, rollout.previous))
        _record(root, "rollback", rollout.previous, rollout)
        return _replace_rollout(
            root, Rollout(champion=rollout.previous, challenger=rollout.challenger, previous=rollout.champion)
        )


def mark_pruned(release: Release, clock: Callable[[], float] = time.time) -> None:
    """Record that the artifacts of a release are no longer needed by it. Only under `lock`, and durable from then on."""
    actor = find_actor()
    pruned = Pruned(datetime.fromtimestamp(clock(), UTC), actor.by, actor.run)
    replace_file(release.path / _PRUNED, _encode(pruned), durable=True)


def _refuse_pruned(release: Release) -> None:
    if release.pruned is not None:
        raise ReleaseError(
            f"release {release.id} was pruned by {release.pruned.by} on {release.pruned.ts:%Y-%m-%d %H:%M} UTC: only its record "
            "is left, so it cannot answer; `queryloop releases` shows which others there are"
        )


def reject(root: Path, name: str, reason: str | None = None) -> Rejection:
    """Take a release out for good: neither a job nor a rollback makes it champion any more. A second time changes nothing.

    Raises ReleaseError for the champion."""
    with _change(root) as rollout:
        read_release(root, name)
        if rollout.champion == name:
            raise ReleaseError(
                f"{name} is live, so it cannot be rejected: `queryloop releases rollback`, or `releases promote` another, first"
            )
        rejected, actor = read_rejected(root), find_actor()
        if name in rejected:
            return rejected[name]
        rejection = Rejection(datetime.now(UTC), actor.by, actor.run, reason)
        _record(root, "reject", name, rollout, reason=reason)
        _replace_rejected(root, {**rejected, name: rejection})
        challenger, previous = (None if one == name else one for one in (rollout.challenger, rollout.previous))
        _replace_rollout(root, Rollout(rollout.champion, challenger, previous))
        return rejection


def read_rejected(root: Path) -> dict[str, Rejection]:
    """Return the rejected releases by id. Raises ReleaseError when the file is damaged."""
    path = root / "releases" / _REJECTED
    return _read(path, dict[str, Rejection]) if path.exists() else {}


def _refuse_rejected(root: Path, name: str, *, force: bool) -> bool:
    """Return whether a release is rejected. Raises ReleaseError for a rejected one without `force`."""
    found = read_rejected(root).get(name)
    if found is not None and not force:
        why = f": {found.reason}" if found.reason else ""
        raise ReleaseError(
            f"{name} was rejected by {found.by} on {found.ts:%Y-%m-%d %H:%M} UTC{why}. "
            f"`queryloop releases promote {name} --force` makes it live all the same"
        )
    return found is not None


def _refuse_failed(release: Release, *, force: bool) -> bool:
    """Return whether its gate refused the release; without `force` raise ReleaseError then."""
    failed = release.gate.get("passed") is False
    if failed and not force:
        reasons = "; ".join(map(str, release.gate.get("reasons", [])))
        raise ReleaseError(f"{release.id} was refused by its gate: {reasons}; promote it with --force to overrule the gate")
    return failed


def _replace_rejected(root: Path, rejected: dict[str, Rejection]) -> None:
    replace_file(root / "releases" / _REJECTED, _encode(rejected), durable=True)


def read_history(root: Path) -> tuple[list[dict[str, Any]], int]:
    """Return each promotion, rollback and rejection, oldest first, and how many lines are damaged.

    Each has ts, action, release, before (the champion until then), by and run; `forced` and `reason` where there were."""
    return read_audit(root, "promote", "rollback", "reject")


def _record(root: Path, action: str, release: str, rollout: Rollout, **more: Any) -> None:
    """Append a change to the audit file before it is made, so that none is made that is not recorded."""
    actor = find_actor()
    what = {"release": release, "before": rollout.champion, "by": actor.by, "run": actor.run}
    append_audit(root, action, what | {key: value for key, value in more.items() if value is not None})


def _find_base(policy: Path) -> Path | None:
    try:
        return find_base(policy)
    except ValueError as error:
        raise ReleaseError(str(error)) from error


def _describe_part(root: Path, folder: Path) -> Part:
    resolved, base = folder.resolve(), root.resolve()
    if not resolved.is_relative_to(base):
        raise ReleaseError(f"{folder}: is outside the data folder {root}, so a release cannot name it")
    artifacts.read_manifest(resolved)
    return Part(resolved.relative_to(base).as_posix(), artifacts.digest(resolved / artifacts.MANIFEST))


def _next_id(releases: Path) -> str:
    taken = [int(entry.name[1:]) for entry in releases.iterdir() if _ID.fullmatch(entry.name)]
    return f"r{max(taken, default=-1) + 1:04d}"


def _scan(root: Path) -> Iterator[Release | ReleaseError]:
    releases = root / "releases"
    names = [entry.name for entry in releases.iterdir() if _ID.fullmatch(entry.name)] if releases.is_dir() else []
    for name in sorted(names, key=lambda name: int(name[1:])):
        try:
            yield read_release(root, name)
        except ReleaseError as error:
            yield error


@contextmanager
def _change(root: Path) -> Iterator[Rollout]:
    with lock(root):
        yield read_rollout(root)


@contextmanager
def lock(root: Path) -> Iterator[None]:
    """Let one process at a time publish, change the rollout, or prune."""
    releases = root / "releases"
    releases.mkdir(parents=True, exist_ok=True)
    with (releases / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace_rollout(root: Path, rollout: Rollout) -> Rollout:
    replace_file(root / "releases" / _ROLLOUT, _encode(rollout), durable=True)
    return rollout


def _read(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise ReleaseError(f"{path}: missing") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ReleaseError(f"{path}: cannot be read: {error}") from error


def _encode(content: msgspec.Struct | dict[str, Rejection]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n"
