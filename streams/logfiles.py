"""Log files: one JSON event a line, plain or gzip, read as bytes because a replay must carry bad lines too."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from streams.events import to_micros


class LogFileError(ValueError):
    """A log file that cannot be read; the text names the file and the line."""


class _Session(msgspec.Struct):
    session_id: str = ""


class _Time(msgspec.Struct):
    ts: float | datetime | None = None


_session_decoder = msgspec.json.Decoder(_Session)
_time_decoder = msgspec.json.Decoder(_Time)


def read_log(path: Path) -> Iterator[bytes]:
    """Yield the lines of a log without their line breaks, blank ones left out. Raises LogFileError."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007
                if stripped := line.rstrip(b"\r\n"):
                    yield stripped
    except (OSError, EOFError, zlib.error) as error:
        raise LogFileError(f"{path}: cannot be read after line {number}: {error}") from error


def session_of(line: bytes) -> str:
    """The line's session, "" where it has none: such a line is no event, and for the agents to judge."""
    try:
        return _session_decoder.decode(line).session_id
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return ""


def time_of(line: bytes) -> int | None:
    """The line's event time in microseconds, None where it has none."""
    try:
        ts = _time_decoder.decode(line).ts
        return None if ts is None else to_micros(ts)
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError, ValueError, OverflowError):
        return None
