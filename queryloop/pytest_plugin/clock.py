"""The virtual clock of a test: it moves only when the test sets it, and the worker reads it instead of the machine's."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta


class Clock:
    """The time of one test. It starts at the machine's time and moves only by `set` and `advance`.

    `when` is seconds since the epoch, a datetime (UTC where it has no zone) or ISO text, as in clock.set("2021-03-02T12:00Z").
    """

    def __init__(self, apply: Callable[[float], None]) -> None:
        self._apply = apply
        self._now = float(int(time.time()))

    def now(self) -> float:
        """The time, in seconds since the epoch."""
        return self._now

    def ts(self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0) -> float:
        """The time so long after now (negative: before it), for the `ts` of an event."""
        return self._now + timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()

    def today(self) -> date:
        """The UTC day."""
        return datetime.fromtimestamp(self._now, UTC).date()

    def set(self, when: float | datetime | str) -> None:
        """Set the time, also backwards. Events sent before are applied at the old time first."""
        seconds = read_when(when)
        self._apply(seconds)
        self._now = seconds

    def advance(self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0) -> None:
        """Let time pass. Events sent before are applied at the old time first."""
        self.set(self.ts(seconds, minutes=minutes, hours=hours, days=days))


def read_when(when: float | datetime | str) -> float:
    """Return seconds since the epoch. Raises ValueError for a text that is no ISO time."""
    if isinstance(when, int | float):
        return float(when)
    moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
