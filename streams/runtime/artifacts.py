"""Immutable folders, by which one room passes weights and indexes to another without ever showing an incomplete one.

A folder is filled under a hidden name in its parent folder, described by a manifest with checksums, made durable and renamed.
So a visible folder is complete, and its checksums show whether it was changed after it was published.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from streams.runtime.atomic_files import new_folder

MANIFEST = "manifest.json"


class ArtifactError(RuntimeError):
    """An artifact that is missing, incomplete or changed; the text names the file."""


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of an artifact."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `manifest.json`; `files` maps paths inside the folder, with forward slashes."""

    kind: str
    id: str
    created: datetime
    meta: dict[str, Any]
    files: dict[str, File]


@dataclass(frozen=True)
class Artifact:
    """A published folder."""

    path: Path
    kind: str
    id: str
    created: datetime
    meta: dict[str, Any]
    files: dict[str, File]


def publish(
    root: Path, kind: str, fill: Callable[[Path], None], meta: dict[str, Any], clock: Callable[[], float] = time.time
) -> Artifact:
    """Let `fill` write a new folder, and publish it as root/kind/<id>; ids sort by time of creation.

    When `fill` raises, nothing is published. Raises ArtifactError for links, special files and a manifest.json of its own.
    """
    created = datetime.fromtimestamp(clock(), UTC)
    name = f"{created:%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"
    path = root / kind / name
    with new_folder(path) as folder:
        fill(folder)
        manifest = Manifest(kind, name, created, meta, _seal(folder))
        (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        (folder / MANIFEST).chmod(0o444)
    return _artifact(path, manifest)


def load(path: Path) -> Artifact:
    """Return the artifact at `path` after checking that its files are exactly those published; raise ArtifactError."""
    manifest = read_manifest(path)
    for name, file in manifest.files.items():
        _check(path, name, file)
    for found in _files(path):
        name = found.relative_to(path).as_posix()
        if name != MANIFEST and name not in manifest.files:
            raise ArtifactError(f"{found}: not in the manifest, so the folder was changed after it was published")
    return _artifact(path, manifest)


def latest(root: Path, kind: str) -> Artifact | None:
    """Return the newest artifact of a kind, checked as `load` does, or None when there is none."""
    path = find_latest(root, kind)
    return load(path) if path is not None else None


def find_latest(root: Path, kind: str) -> Path | None:
    """Return the folder of the newest artifact of a kind without reading it, or None when there is none."""
    found = list_folders(root, kind)
    return found[-1] if found else None


def list_folders(root: Path, kind: str = "*") -> list[Path]:
    """Return the published folders of a kind, or of all, by kind and time; those that are not finished or pruned are hidden."""
    return sorted(path for path in root.glob(f"{kind}/*") if not path.name.startswith(".") and path.is_dir())


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of the folder without checking its files; raise ArtifactError."""
    try:
        return msgspec.json.decode((path / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise ArtifactError(f"{path / MANIFEST}: missing, so this is no complete artifact") from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path / MANIFEST}: cannot be read: {error}") from error


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _artifact(path: Path, manifest: Manifest) -> Artifact:
    return Artifact(path, manifest.kind, manifest.id, manifest.created, manifest.meta, manifest.files)


def _seal(folder: Path) -> dict[str, File]:
    """Make every file read-only; return their sizes and checksums."""
    files = {}
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST:
            raise ArtifactError(f"{path}: this name is reserved for the artifact's own manifest")
        path.chmod(0o444)
        files[name] = File(path.stat().st_size, digest(path))
    return files


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ArtifactError(f"{path}: an artifact holds plain files and folders only")
        if path.is_file():
            yield path


def _check(folder: Path, name: str, file: File) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ArtifactError(f"{folder / MANIFEST}: names {name!r}, which lies outside the artifact")
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{path}: missing, the manifest names it")
    if path.stat().st_size != file.bytes:
        raise ArtifactError(f"{path}: {path.stat().st_size} bytes, the manifest says {file.bytes}")
    if digest(path) != file.sha256:
        raise ArtifactError(f"{path}: its checksum differs from the manifest's, so it was changed or damaged")
