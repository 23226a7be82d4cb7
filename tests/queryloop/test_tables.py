"""Tables: whole lines in a pipe, folded on a terminal, and no text of a user is read as markup, emoji code or command."""

from __future__ import annotations

import io
import re
import sys

import pytest

from queryloop.tables import NOTHING, cell, print_line, print_table

HOSTILE = "[red]:smile:\x1b[2J\u202e"
SHOWN = r"[red]:smile:\x1b[2J\u202e"


class Terminal(io.StringIO):
    """A standard output that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> Terminal:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    return terminal


def test_in_a_pipe_a_row_is_one_whole_line_without_rules(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 500
    print_table(("release", "state"), [["r0000", long], ["r0001", "champion"]])
    assert capsys.readouterr().out.splitlines() == ["release  state", f"r0000    {long}", "r0001    champion"]


def test_columns_stand_below_each_other_whatever_the_width_of_the_letters(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("item", "n"), [["靴", 1], ["shoe", 2]])
    assert capsys.readouterr().out.splitlines() == ["item  n", "靴    1", "shoe  2"]


def test_no_text_is_markup_emoji_or_a_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    print_table(("item",), [[HOSTILE]])
    print_line(HOSTILE, (HOSTILE, "red"))
    assert capsys.readouterr().out.splitlines() == ["item", SHOWN, SHOWN + SHOWN]
    terminal = on_terminal(monkeypatch, 80)
    print_table(("item",), [[HOSTILE]], texts=("item",))
    print_line(HOSTILE)
    plain = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue())
    assert plain.count(SHOWN) == 2 and "\x1b" not in plain and "\u202e" not in plain


def test_on_a_terminal_texts_fold_and_numbers_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch, 80)
    print_table(("query", "position", "smoothed"), [["word " * 40, 123_456_789, 0.25]], texts=("query",))
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("123456789" in line and "0.25" in line for line in lines)
    assert sum(line.count("word") for line in lines) == 40


def test_what_is_not_known_is_a_dash() -> None:
    assert (cell(None), cell(0.123456), cell(1234.5), cell(0)) == (NOTHING, "0.1235", "1,234", "0")
