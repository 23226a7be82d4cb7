"""What a foreign log is: its files, and the format that their first bytes tell."""

from __future__ import annotations

from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal

from streams.importers.sources import BOM, Kind, LogFileError, Source

Format = Literal["table", "ndjson", "array", "parquet"]

HIDDEN = (".", "_")
HEAD_BYTES = 4096


@dataclass(frozen=True)
class Part:
    """One file of a log, and how it is compressed."""

    path: Path
    kind: Kind
    format: Format


def find_parts(path: Path) -> list[Part]:
    """Return the files that a path, a folder or a glob names, in order, empty ones left out; all have one format.

    Raises LogFileError.
    """
    parts = [part for file in _find_files(path) if (part := _read_part(file)) is not None]
    if not parts:
        raise LogFileError(f"{path} is empty")
    for part in parts:
        if part.format != parts[0].format:
            raise LogFileError(f"{path}: {parts[0].path} is {parts[0].format}, {part.path} is {part.format}: replay them apart")
    return parts


def _find_files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [one for one in path.rglob("*") if not any(name.startswith(HIDDEN) for name in one.relative_to(path).parts)]
    elif path.exists() or not (found := [Path(one) for one in glob(str(path), recursive=True)]):  # noqa: PTH207
        found = [path]
    if not (files := sorted(one for one in found if not one.is_dir())):
        raise LogFileError(f"{path} holds no file")
    for file in files:
        if file.exists() and not file.is_file():
            raise LogFileError(f"{file} is no regular file, which a mapping may read more than once")
    return files


def _read_part(path: Path) -> Part | None:
    with Source(path) as source:
        kind = source.kind
        if kind == "zstd":  # DuckDB 2.0 takes one that is cut short for a whole one
            source.check_whole()
    if kind == "parquet":
        return Part(path, kind, "parquet")
    with Source(path) as source, source.reporting():
        head = source.stream().read(HEAD_BYTES).removeprefix(BOM).lstrip()
    if not head:
        return None
    return Part(path, kind, "ndjson" if head.startswith(b"{") else "array" if head.startswith(b"[") else "table")
