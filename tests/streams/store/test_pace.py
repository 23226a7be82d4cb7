"""Pace: what can wait gets a share of the time, one shard at a time."""

from __future__ import annotations

import pytest

from streams.store.maintenance import REST, Pace
from tests.support.clocks import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take_turn(pace: Pace, clock: Clock, seconds: float) -> bool:
    """Ask for a turn and, where there is one, use it for so long."""
    with pace.turn() as is_free:
        clock.now += seconds if is_free else 0.0
    return is_free


def test_there_is_no_turn_while_another_shard_has_it(clock: Clock) -> None:
    pace = Pace(clock)
    with pace.turn() as first, pace.turn() as second:
        assert (first, second) == (True, False)


def test_after_a_turn_it_rests_as_many_times_as_long(clock: Clock) -> None:
    pace = Pace(clock)
    assert take_turn(pace, clock, 2.0)
    clock.now += REST * 2.0 - 0.5
    assert not take_turn(pace, clock, 1.0)
    clock.now += 0.5
    assert take_turn(pace, clock, 1.0)


def test_a_turn_that_found_nothing_to_do_costs_none(clock: Clock) -> None:
    pace = Pace(clock)
    assert take_turn(pace, clock, 0.0)
    assert take_turn(pace, clock, 1.0)


def test_it_rests_after_a_turn_that_failed_too(clock: Clock) -> None:
    pace = Pace(clock)
    with pytest.raises(ValueError, match="broken"), pace.turn():
        clock.now += 1.0
        raise ValueError("broken")
    assert not take_turn(pace, clock, 1.0)
    clock.now += REST
    assert take_turn(pace, clock, 1.0)
