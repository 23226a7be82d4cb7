"""The times of Kafka records, so that an event whose own clock is ahead does not move the time of its shard.

An event cannot have happened after Kafka got it. Where its time says so, the clock that gave the time was wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streams.events.line_spans import Int64s

NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class RecordTimes:
    """The offsets of some records of one partition, in ascending order, and their Kafka timestamps in microseconds.

    The timestamp is that of the producer (CreateTime) or of the broker (LogAppendTime), as the topic has it; -1: it has none.
    """

    offsets: Int64s
    times_us: Int64s

    def earlier(self, log_offset: Int64s, ts_us: Int64s) -> Int64s:
        """Return for each event the earlier of its own time and its record's; its own where the record's is not known."""
        if not len(self.offsets):
            return ts_us
        rows = (ts_us > self.times_us.min()).nonzero()[0]
        if not len(rows):
            return ts_us
        at = np.minimum(self.offsets.searchsorted(log_offset[rows]), len(self.offsets) - 1)
        own, recorded = ts_us[rows], self.times_us[at]
        is_known = (recorded >= 0) & (self.offsets[at] == log_offset[rows])
        clock = ts_us.copy()
        clock[rows] = np.where(is_known, np.minimum(own, recorded), own)
        return clock


NO_TIMES = RecordTimes(NONE, NONE)
