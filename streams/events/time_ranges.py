"""Ranges of event time: a batch's rows in groups whose look-up reads little of a table that is mostly ordered by time.

DuckDB skips the parts of a table whose smallest and largest time lie outside a range. One late event in a batch of recent ones
would make the range days long, so late events are looked up apart from recent ones.
"""

from __future__ import annotations

import numpy as np

from streams.events.line_spans import Int64s
from streams.events.rules import DAY_US, HOUR_US

RECENT_US = 2 * HOUR_US
MAX_GROUPS = 4


def group_times(ts_us: Int64s) -> list[Int64s]:
    """Return the rows of the last two hours, then earlier ones grouped by UTC day, or in one group if they are of many days."""
    if not len(ts_us):
        return []
    recent = ts_us >= ts_us.max() - RECENT_US
    groups = [np.flatnonzero(recent)]
    late = np.flatnonzero(~recent)
    if len(late):
        days = ts_us[late] // DAY_US
        distinct = np.unique(days)
        groups += [late[days == day] for day in distinct] if len(distinct) < MAX_GROUPS else [late]
    return groups
