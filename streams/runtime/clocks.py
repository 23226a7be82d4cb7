"""A clock that somebody sets: the time that a worker goes by when it must not go by the machine's.

Tests and replays of old logs say what time it is; the check for events from the future then means what it meant at that time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from streams.runtime.atomic_files import replace_file


class ClockError(RuntimeError):
    """A clock file that tells no time; the text names it."""


def choose_clock(file: Path | None) -> Callable[[], float]:
    """Return the system's clock, or one that reads the file anew each time: seconds since the epoch. It raises ClockError."""
    return time.time if file is None else lambda: read_clock(file)


def read_clock(file: Path) -> float:
    """Return the seconds since the epoch that a clock file holds. Raises ClockError."""
    try:
        seconds = float(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ClockError(f"worker.clock_file {file} tells no time: {error}; write seconds since the epoch into it") from error
    if not math.isfinite(seconds):
        raise ClockError(f"worker.clock_file {file} tells no time: {seconds}")
    return seconds


def set_clock(file: Path, seconds: float) -> None:
    """Write a clock file, so that a reader sees the old time or the new one."""
    replace_file(file, repr(float(seconds)).encode(), durable=False, shared=True)
