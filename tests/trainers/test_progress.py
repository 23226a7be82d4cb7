"""A long stage in a log: a line with what is done, of how many, every quarter of a minute."""

from __future__ import annotations

import logging

import pytest

from tests.support.clocks import Clock
from trainers.progress import track


def test_a_stage_without_a_terminal_logs_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    with caplog.at_level(logging.INFO):
        for _ in track(range(10), "candidate search", total=10, clock=clock):
            clock.now += 7
    assert [record.getMessage() for record in caplog.records] == [
        f"event=progress stage='candidate search' done={done} of=10 seconds={7 * done}" for done in (3, 6, 9)
    ]


def test_a_quick_stage_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert list(track("abc", "letters", clock=Clock())) == ["a", "b", "c"]
    assert caplog.records == []
