"""A clock in a file, which a worker reads instead of the machine's clock.

Tests and replays of old logs set it, so that the check for events from the future uses the time of the log.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from streams.runtime.atomic_files import replace_file


class ClockError(RuntimeError):
    """A clock file that cannot be read; the text names it."""


def choose_clock(file: Path | None) -> Callable[[], float]:
    """Return the system's clock, or one that reads the file at each call (seconds since the epoch) and may raise ClockError."""
    return time.time if file is None else lambda: read_clock(file)


def read_clock(file: Path) -> float:
    """Return the seconds since the epoch in a clock file; raise ClockError."""
    try:
        seconds = float(file.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise ClockError(f"worker.clock_file {file} cannot be read: {error}; write seconds since the epoch into it") from error
    if not math.isfinite(seconds):
        raise ClockError(f"worker.clock_file {file} is {seconds}; write seconds since the epoch into it")
    return seconds


def set_clock(file: Path, seconds: float) -> None:
    """Write a clock file in one step, so that a reader sees the old time or the new one."""
    replace_file(file, repr(float(seconds)).encode(), durable=False, shared=True)
