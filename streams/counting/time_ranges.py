"""Ranges of event time: a batch's rows grouped so that looking each group up reads little of a table that lies in order of time.

DuckDB skips the parts of a table whose smallest and largest time do not meet a range. One late event in a batch of recent ones
would make that range days long, so late ones are looked up by themselves.
"""

from __future__ import annotations

import numpy as np

from streams.events.line_spans import Int64s
from streams.events.rules import DAY_US, HOUR_US

RECENT_US = 2 * HOUR_US
MOST_GROUPS = 4


def group_times(ts_us: Int64s) -> list[Int64s]:
    """Return the rows of the last two hours, then those before, by UTC day, or all in one where they spread over many days."""
    if not len(ts_us):
        return []
    recent = ts_us >= ts_us.max() - RECENT_US
    groups = [np.flatnonzero(recent)]
    late = np.flatnonzero(~recent)
    if len(late):
        days = ts_us[late] // DAY_US
        distinct = np.unique(days)
        groups += [late[days == day] for day in distinct] if len(distinct) < MOST_GROUPS else [late]
    return groups
