"""Stages are timed and printed; the time left is estimated from the stages so far."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from queryloop.demo.stages import Stages
from tests.support.clocks import Clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


def test_each_stage_is_recorded_from_its_begin_to_its_end(clock: Clock) -> None:
    with Stages({"one": 5.0, "two": 5.0}, clock) as stages:
        with stages.stage("one"):
            clock.now += 4.0
        clock.now += 1.0
        with stages.stage("two") as tell:
            tell(0.5)
            clock.now += 2.0
    assert [(span.name, span.start, span.end) for span in stages.spans] == [("one", 0.0, 4.0), ("two", 5.0, 7.0)]


def test_a_stage_that_fails_is_recorded_and_named(clock: Clock) -> None:
    stages = Stages({"one": 5.0}, clock)
    with pytest.raises(ValueError, match="broken"), stages, stages.stage("one"):
        clock.now += 3.0
        raise ValueError("broken")
    assert stages.current == "one"
    assert stages.spans[0].end == 3.0


def test_progress_goes_to_stderr_with_the_stages_name_and_expected_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Stages({"one": 5.0, "two": 7.0}, clock) as stages, stages.stage("one"):
        clock.now += 6.0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "1/2 one" in shown.err
    assert "about 5 s" in shown.err
    assert "6.0 s" in shown.err


def test_by_time_alone_a_stage_is_never_done(clock: Clock) -> None:
    stages = Stages({"one": 10.0}, clock)
    with stages.stage("one"):
        assert stages.expect(5.0) == 0.5
        assert stages.expect(500.0) < 1.0


def test_text_is_printed_as_it_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    Stages({}, clock).print_line("[red]not markup[/red]")
    assert "[red]not markup[/red]" in capsys.readouterr().err
