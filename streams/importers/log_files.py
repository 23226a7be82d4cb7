"""Log files as event lines: NDJSON plain or compressed, Parquet, folders of both, and foreign logs through a mapping.

A log is read as bytes, because a replay must carry bad lines too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

import msgspec

from streams.events.line_decoder import read_session as session_of
from streams.events.schema import BOM, SPACE, to_micros
from streams.importers.formats import find_files
from streams.importers.forms import find_document
from streams.importers.sources import HEAD_BYTES, TABLES, LogFileError, Source, bare_name, unreadable
from streams.importers.unmapped import read_unmapped

if TYPE_CHECKING:
    from streams.importers.foreign import ForeignLog
    from streams.importers.mapping import Mapping

__all__ = ["LogFile", "LogFileError", "Place", "read_log", "session_of", "time_of"]


Unit = Literal["line", "row", "answered row"]


class _Time(msgspec.Struct):
    ts: float | datetime | None = None


_time_decoder = msgspec.json.Decoder(_Time)


@dataclass(frozen=True)
class Place:
    """Where an event line comes from: the line of a text, the row of a Parquet file, or the row that a mapping answered.

    `file` is None for a mapping's answer, whose rows come from no one file; numbers begin with 1.
    """

    file: str | None
    unit: Unit
    number: int

    def __str__(self) -> str:
        return f"{self.unit} {self.number}" if self.file is None else f"{self.file} {self.unit} {self.number}"


class LogFile:
    """A log opened for one reading: iterate over its event lines. Use it in a `with` block.

    `path` is a file, or a folder or a glob whose files are read in the order of their names. Opening checks what can be checked
    before the first line (the form of each file, the log's columns against the mapping, Parquet's columns) and raises
    LogFileError; so does the reading.
    """

    def __init__(self, path: Path, mapping: Mapping | None = None) -> None:
        self._opened: _Files | ForeignLog = _Files(path) if mapping is None else _open_foreign(path, mapping)
        self._number = 0
        self._lines = self._opened.lines()

    @property
    def size(self) -> int:
        """Bytes of the log on disk."""
        return self._opened.size

    @property
    def position(self) -> int:
        """Bytes of it that are read."""
        return self._opened.position

    def place_of(self, line: bytes) -> Place:
        """Return where the line that was read last comes from."""
        if isinstance(self._opened, _Files):
            return Place(self._opened.name, self._opened.unit, self._number)
        unmapped = read_unmapped(line)
        return Place(None, "answered row", self._number) if unmapped is None else Place(unmapped.file, "row", unmapped.row)

    def __iter__(self) -> Iterator[bytes]:
        for number, line in self._lines:
            self._number = number
            yield line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()


def read_log(path: Path, mapping: Mapping | None = None) -> Iterator[bytes]:
    """Yield the event lines of a log without their line breaks, blank ones left out. Raises LogFileError."""
    with LogFile(path, mapping) as log:
        yield from log


def time_of(line: bytes) -> int | None:
    """The line's event time in microseconds, None where it has none."""
    try:
        ts = _time_decoder.decode(line).ts
        return None if ts is None else to_micros(ts)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, ValueError, OverflowError):
        return None


def _open_foreign(path: Path, mapping: Mapping) -> ForeignLog:
    from streams.importers.foreign import ForeignLog

    return ForeignLog(path, mapping)


class _Files:
    """The files of a log, each opened once before the first line, to check it, and again when its turn comes."""

    def __init__(self, path: Path) -> None:
        self._paths = find_files(path)
        self._folder = path if path.is_dir() else path.parent
        self._source = Source(self._paths[0])
        self._done = 0
        self.files = len(self._paths)
        self.size = self._source.size
        try:
            self._first = _read_lines(self._source)
            for other in self._paths[1:]:
                with Source(other) as source:
                    _read_lines(source)
                    self.size += source.size
        except BaseException:
            self._source.close()
            raise

    @property
    def position(self) -> int:
        return self._done + self._source.position

    @property
    def name(self) -> str:
        """The name of the file that is read now, below the folder where the log is one."""
        path = self._source.path
        return str(path.relative_to(self._folder)) if path.is_relative_to(self._folder) else str(path)

    @property
    def unit(self) -> Unit:
        return "row" if self._source.kind == "parquet" else "line"

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of each file with their numbers in it. Raises LogFileError."""
        yield from self._first
        for path in self._paths[1:]:
            self._done += self._source.size
            self._source.close()
            self._source = Source(path)
            yield from _read_lines(self._source)

    def close(self) -> None:
        self._source.close()


def _read_lines(source: Source) -> Iterator[tuple[int, bytes]]:
    """Return the numbered lines of a file. Raises LogFileError for what is no log of events."""
    if source.kind == "parquet":
        from streams.importers.parquet import read_parquet

        return read_parquet(source)
    if bare_name(source.path).endswith(TABLES) and source.head.strip(SPACE):
        raise LogFileError(f"{source.path} is a table: say with --mapping FILE.sql what its columns are (docs/mappings.md)")
    if document := find_document(source.head.removeprefix(BOM), len(source.head) < HEAD_BYTES):
        raise unreadable(source.path, source.kind, *document)
    return source.lines()
