"""Times are grouped so that recent events are looked up apart from late ones."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from streams.events.rules import DAY_US, HOUR_US
from streams.events.time_ranges import group_times


@settings(deadline=None)
@given(st.lists(st.integers(0, 20 * 24).map(lambda hours: hours * HOUR_US), max_size=30))
def test_every_time_is_in_one_group_and_the_recent_ones_have_their_own(times: list[int]) -> None:
    ts_us = np.array(times, np.int64)
    groups = group_times(ts_us)
    assert sorted(np.concatenate([*groups, np.array([], np.int64)]).tolist()) == list(range(len(times)))
    assert len(groups) <= 4
    if times:
        assert set(groups[0].tolist()) == {row for row, us in enumerate(times) if us >= max(times) - 2 * HOUR_US}
    if len(groups) > 1 and len({us // DAY_US for us in times}) == len(groups):
        assert all(len({times[row] // DAY_US for row in group}) == 1 for group in groups[1:])
