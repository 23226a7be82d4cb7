"""The numbers that decide what counts. They stand apart from the store because every counting file reads them."""

from __future__ import annotations

from dataclasses import dataclass

DAY_US = 86_400_000_000
"""Microseconds of a UTC day; an event's day is `ts_us // DAY_US` days after 1970-01-01."""

WINDOW_DAYS = 14
"""Days that a window or a co-occurrence table as of a day covers, that day excluded."""

HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class CountingRules:
    """How one shard counts; all times in event time.

    `retention_days` 0 keeps everything: nothing is too old and no click stops waiting before `Shard.finish` (an isolated log).
    No count depends on `compact_rows`, the rows that a day gains before it is compacted, once it is over.
    """

    retention_days: int = 30
    attribution_window_us: int = 24 * HOUR_US
    session_gap_us: int = HOUR_US // 2
    future_tolerance_us: int = 24 * HOUR_US
    compact_rows: int = 400_000

    @property
    def retention_us(self) -> int:
        """Microseconds that events are kept, 0 for ever."""
        return self.retention_days * DAY_US

    @property
    def reach_us(self) -> int:
        """How far before an accepted event the state may be needed to count it: its impression, or the query before it."""
        return max(self.attribution_window_us, self.session_gap_us)
