"""How far a shard is behind its partition's log: in records, in events and in time."""

from __future__ import annotations

from typing import Any

from streams.store.progress import LogEnd, Progress
from streams.store.totals import ShardTotals


def describe_lag(totals: ShardTotals, progress: Progress, log_end: LogEnd | None, now: float) -> dict[str, Any]:
    """Return one shard's lag as JSON values. `log_end` is None if it is unknown.

    `records` is the lag in records, `events` that times the recent events per record. `seconds` is the age of the last
    applied record while the shard is behind, 0 while it is not, null before the first apply. `event_time_seconds` is the age
    of the latest event by its own time. `open_transaction_records` are those that cannot be read yet, because a producer's
    transaction has not ended; they are no lag.
    """
    end = None if log_end is None else log_end.stable
    position = 0 if end == 0 else totals.next_offset  # a log that never had a record has no lag
    behind = None if end is None or position is None else max(end - position, 0)
    age = None if progress.timestamp_ms is None else max(now - progress.timestamp_ms / 1000, 0.0)
    return {
        "next_offset": totals.next_offset,
        "end_offset": end,
        "open_transaction_records": None if log_end is None else log_end.last - log_end.stable,
        "records": behind,
        "events": None if behind is None else round(behind * progress.events_per_record(totals)),
        "seconds": 0.0 if behind == 0 else age,
        "event_time_seconds": None if totals.latest_us is None else now - totals.latest_us / 1e6,
        "latest_ts": None if totals.latest_us is None else totals.latest_us / 1e6,
    }
