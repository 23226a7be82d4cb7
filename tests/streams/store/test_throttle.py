"""The throttle gives maintenance a fraction of the time, to one shard after the other."""

from __future__ import annotations

import pytest

from streams.store.throttle import REST_FACTOR, Throttle
from tests.support.clocks import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def take_turn(throttle: Throttle, clock: Clock, seconds: float) -> bool:
    """Ask for a turn and use it for so many seconds; return whether there was one."""
    with throttle.turn() as is_free:
        clock.now += seconds if is_free else 0.0
    return is_free


def test_there_is_no_turn_while_another_shard_has_it(clock: Clock) -> None:
    throttle = Throttle(clock)
    with throttle.turn() as first, throttle.turn() as second:
        assert (first, second) == (True, False)


def test_after_a_turn_there_is_a_pause_as_many_times_as_long(clock: Clock) -> None:
    throttle = Throttle(clock)
    assert take_turn(throttle, clock, 2.0)
    clock.now += REST_FACTOR * 2.0 - 0.5
    assert not take_turn(throttle, clock, 1.0)
    clock.now += 0.5
    assert take_turn(throttle, clock, 1.0)


def test_after_a_turn_without_work_there_is_no_pause(clock: Clock) -> None:
    throttle = Throttle(clock)
    assert take_turn(throttle, clock, 0.0)
    assert take_turn(throttle, clock, 1.0)


def test_there_is_a_pause_after_a_failed_turn_too(clock: Clock) -> None:
    throttle = Throttle(clock)
    with pytest.raises(ValueError, match="broken"), throttle.turn():
        clock.now += 1.0
        raise ValueError("broken")
    assert not take_turn(throttle, clock, 1.0)
    clock.now += REST_FACTOR
    assert take_turn(throttle, clock, 1.0)
