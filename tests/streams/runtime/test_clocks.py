"""A clock file is read at each call; one that cannot be read is named in the error."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from streams.runtime.clocks import ClockError, choose_clock, set_clock


def test_without_a_file_it_is_the_systems_clock() -> None:
    assert choose_clock(None) is time.time


@pytest.mark.parametrize("seconds", [0.0, -1.5, 1_600_000_000.123456, 1e15])
def test_a_clock_returns_the_time_that_was_set_last(seconds: float, tmp_path: Path) -> None:
    clock = choose_clock(tmp_path / "clock")
    set_clock(tmp_path / "clock", 1.0)
    assert clock() == 1.0
    set_clock(tmp_path / "clock", seconds)
    assert clock() == seconds
    assert [path.name for path in tmp_path.iterdir()] == ["clock"]


@pytest.mark.parametrize("text", ["", "noon", "nan", "inf", "\xff"])
def test_a_file_without_a_time_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text(text, encoding="latin-1")
    with pytest.raises(ClockError, match=r"worker\.clock_file .*clock (cannot be read|is (nan|inf))"):
        choose_clock(tmp_path / "clock")()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClockError, match="No such file"):
        choose_clock(tmp_path / "clock")()
