"""The numbers that decide what counts, in one place because every counting file reads them."""

from __future__ import annotations

from dataclasses import dataclass

DAY_US = 86_400_000_000
"""Microseconds of a UTC day; an event's day is `ts_us // DAY_US` days after 1970-01-01."""

WINDOW_DAYS = 14
"""Days that a window or a co-occurrence table as of a day covers, that day excluded."""

HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class CountingRules:
    """How one shard counts; all times are event times.

    A click up to `click_lead_us` before its list counts as if it came with it: the visitor's clock is behind the server's. With
    `record_times` the time of the shard moves by the earlier of an event's own time and the time of its Kafka record, so that an
    event with a wrong time does not move it; without, by event time alone.

    `retention_days` 0 keeps everything: no event is too old, and clicks wait for their impression until `Shard.finish` (replay of
    an isolated log). `compact_rows` is how many rows a past day gains before it is compacted; no count depends on it. Of lists
    of one query that one session got on one UTC day, the first `session_cap` count in the windows, and of those that one user got
    in this shard the first `user_cap`; likewise of equal pairs of queries in co-occurrence. 0 is no cap.
    """

    retention_days: int = 30
    attribution_window_us: int = 24 * HOUR_US
    session_gap_us: int = HOUR_US // 2
    future_tolerance_us: int = 24 * HOUR_US
    click_lead_us: int = HOUR_US // 12
    record_times: bool = True
    compact_rows: int = 400_000
    session_cap: int = 0
    user_cap: int = 0

    @property
    def has_caps(self) -> bool:
        """Whether what one session, or one user, weighs is capped."""
        return bool(self.session_cap or self.user_cap)

    @property
    def retention_us(self) -> int:
        """Microseconds that events are kept; 0 means for ever."""
        return self.retention_days * DAY_US

    @property
    def lookback_us(self) -> int:
        """How far before an event (microseconds) the state that counts it may lie: its impression, or the query before it."""
        return max(self.attribution_window_us, self.session_gap_us)
