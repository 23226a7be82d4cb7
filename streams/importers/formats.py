"""What a foreign log is: its files, and the format that their beginning and their names tell."""

from __future__ import annotations

from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal

from streams.events.schema import BOM
from streams.importers.forms import find_document, is_object
from streams.importers.sources import HEAD_BYTES, TABLES, Kind, LogFileError, Source, bare_name, unreadable

Format = Literal["table", "ndjson", "array", "parquet"]

HIDDEN = (".", "_")
JSON_LINES = (".ndjson", ".jsonl", ".json")
DELIMITERS = (b"\t", b",", b";", b"|")


@dataclass(frozen=True)
class Part:
    """One file of a log, and how it is compressed."""

    path: Path
    kind: Kind
    format: Format


def find_parts(path: Path) -> list[Part]:
    """Return the files that a path, a folder or a glob names, in order, empty ones left out; all have one format.

    Raises LogFileError, also for a pipe, since a mapping may read its files more than once.
    """
    files = find_files(path)
    for file in files:
        if file.exists() and not file.is_file():
            raise LogFileError(f"{file} is no regular file, which a mapping may read more than once")
    parts = [part for file in files if (part := _read_part(file)) is not None]
    for part in parts:
        if part.format != parts[0].format:
            raise LogFileError(f"{path}: {parts[0].path} is {parts[0].format}, {part.path} is {part.format}: replay them apart")
    return parts


def find_files(path: Path) -> list[Path]:
    """Return the files that a path, a folder or a glob names, in order; hidden ones of a folder are left out.

    Raises LogFileError where a folder or a glob has none.
    """
    if path.is_dir():
        found = [one for one in path.rglob("*") if not any(name.startswith(HIDDEN) for name in one.relative_to(path).parts)]
    elif path.exists() or not (found := [Path(one) for one in glob(str(path), recursive=True)]):  # noqa: PTH207
        found = [path]
    if not (files := sorted(one for one in found if not one.is_dir())):
        raise LogFileError(f"{path} holds no file")
    return files


def _read_part(path: Path) -> Part | None:
    with Source(path) as source:
        kind = source.kind
        if kind == "zstd":  # DuckDB 2.0 takes one that is cut short for a whole one
            source.check_whole()
    if kind == "parquet":
        return Part(path, kind, "parquet")
    with Source(path) as source, source.reporting():
        stream = source.stream()
        head = stream.read(HEAD_BYTES).removeprefix(BOM).lstrip()
        while not head and (block := stream.read(HEAD_BYTES)):
            head = block.lstrip()
    found = Part(path, kind, _tell_format(bare_name(path), head)) if head else None
    if found and found.format == "ndjson" and (document := find_document(head, len(head) < HEAD_BYTES)):
        raise unreadable(path, kind, *document)
    return found


def _tell_format(name: str, head: bytes) -> Format:
    """Tell a text format. A bad first line must not make a table of NDJSON: its header would be lost, and the rows misread."""
    lines = head.splitlines()
    if is_object(lines[0]):
        return "ndjson"
    if name.endswith(TABLES):
        return "table"
    if head.startswith(b"["):
        return "array"
    if name.endswith(JSON_LINES) or head.startswith(b"{") or any(map(is_object, lines)):
        return "ndjson"
    parts_fields = any(mark in lines[0] for mark in DELIMITERS)
    return "table" if parts_fields and any(line.strip() for line in lines[1:]) else "ndjson"
