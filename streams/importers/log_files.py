"""Log files as event lines: NDJSON plain or compressed, Parquet, and foreign logs through a mapping.

A log is read as bytes, because a replay must carry bad lines too.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from streams.events.line_decoder import read_session as session_of
from streams.events.schema import to_micros
from streams.importers.sources import TABLES, LogFileError, Source, bare_name

if TYPE_CHECKING:
    from streams.importers.foreign import ForeignLog
    from streams.importers.mapping import Mapping

__all__ = ["LogFile", "LogFileError", "read_log", "session_of", "time_of"]


class _Time(msgspec.Struct):
    ts: float | datetime | None = None


_time_decoder = msgspec.json.Decoder(_Time)


class LogFile:
    """A log opened for one reading: iterate over its event lines. Use it in a `with` block.

    Opening checks what can be checked before the first line (the file, the log's columns against the mapping, Parquet's columns)
    and raises LogFileError; so does the reading.
    """

    def __init__(self, path: Path, mapping: Mapping | None = None) -> None:
        self._opened: Source | ForeignLog
        self._opened, self._lines = _open_source(path) if mapping is None else _open_foreign(path, mapping)

    @property
    def size(self) -> int:
        """Bytes of the log on disk."""
        return self._opened.size

    @property
    def position(self) -> int:
        """Bytes of it that are read."""
        return self._opened.position

    def __iter__(self) -> Iterator[bytes]:
        return self._lines

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


def _open_foreign(path: Path, mapping: Mapping) -> tuple[ForeignLog, Iterator[bytes]]:
    from streams.importers.foreign import ForeignLog

    log = ForeignLog(path, mapping)
    return log, log.lines()


def _open_source(path: Path) -> tuple[Source, Iterator[bytes]]:
    source = Source(path)
    try:
        return source, _read_lines(source)
    except BaseException:
        source.close()
        raise


def _read_lines(source: Source) -> Iterator[bytes]:
    if source.kind == "parquet":
        from streams.importers.parquet import read_parquet

        return read_parquet(source)
    if bare_name(source.path).endswith(TABLES):
        raise LogFileError(f"{source.path} is a table: say with --mapping FILE.sql what its columns are (docs/mappings.md)")
    return source.lines()
