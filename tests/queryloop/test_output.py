"""What commands print: text that cannot harm a terminal, and JSON in the shapes of docs/commands.md, errors too."""

from __future__ import annotations

import argparse
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queryloop import cli
from queryloop.exits import Exit
from queryloop.output import clean, rfc3339, with_times
from streams.runtime.processes import free_port
from tests.support.command_table import RFC3339, check_answer, read_table

WORKING = {"up", "broker"}
"""Commands that run until they are stopped: they have no answer."""
NEEDED = {
    "erase": ["--session", "s"],
    "run": ["policy"],
    "successors": ["--query", "q"],
    "windows": ["--query", "q"],
    "replay": ["log.jsonl"],
    "quarantine show": ["0:1"],
    "quarantine replay": ["0:1"],
    "quarantine drop": ["--reason", "invalid", "--yes"],
}
"""Words without which a command is wrong usage."""
READS = ("config", "status", "releases", "windows", "successors", "lag", "delays", "quarantine list", "quarantine show", "verify")


def walk(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command that has no further steps, by its words."""
    steps = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not steps:
        yield " ".join(path), parser
    for one in steps:
        for name, inner in one.choices.items():
            yield from walk(inner, (*path, name))


COMMANDS = dict(walk(cli.make_parser()))
ANSWERING = sorted(COMMANDS.keys() - WORKING)


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which nothing was ever started, with addresses at which nothing listens."""
    monkeypatch.chdir(tmp_path)
    for name in ("WORKER", "SERVING"):
        monkeypatch.setenv(f"QUERYLOOP_{name}_PORT", str(free_port()))
    return tmp_path


def run(command: str, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """A command's exit code and the one object on its standard output."""
    try:
        code = cli.main([*command.split(), *words, "--json"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    out = capsys.readouterr().out
    answer = json.loads(out)
    assert isinstance(answer, dict) and out.isascii()
    return code, answer


def test_every_command_that_answers_has_json_and_stands_in_the_table() -> None:
    documented = {" ".join(word for word in one.split() if not word.startswith("--")) for one in read_table()}
    assert documented == set(ANSWERING)
    for name in ANSWERING:
        assert "--json" in COMMANDS[name]._option_string_actions, name
    assert set(READS) <= set(ANSWERING)


@pytest.mark.parametrize("command", ANSWERING)
def test_wrong_usage_is_json_under_json(command: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = run(command, "--no-such-option", capsys=capsys)
    assert code == Exit.USAGE
    check_answer(command, code, answer)
    assert set(answer) == {"error", "exit_code"} and answer["exit_code"] == code


@pytest.mark.parametrize("command", [one for one in ANSWERING if one != "torture"])  # it reads no settings
def test_wrong_settings_are_json_under_json(command: str, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "queryloop.toml").write_text("[kafka]\npartitoins = 3\n")
    code, answer = run(command, *NEEDED.get(command, ()), capsys=capsys)
    assert code == Exit.USAGE
    assert set(answer) == {"error", "exit_code"} and "kafka.partitoins" in answer["error"]


@pytest.mark.parametrize("command", [one for one in ANSWERING if one not in ("demo", "torture", "run")])  # these start things
def test_where_nothing_runs_each_command_answers_or_says_why_in_json(
    command: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (stopped / "log.jsonl").write_text("")
    code, answer = run(command, *NEEDED.get(command, ()), capsys=capsys)
    check_answer(command, code, answer)
    assert "Errno" not in str(answer.get("error", ""))


def test_an_empty_log_is_checked_in_the_documented_shape(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (stopped / "log.jsonl").write_text('{"type": "query"}\n')
    code, answer = run("replay", "log.jsonl", "--check", capsys=capsys)
    assert code == Exit.FAILED
    check_answer("replay --check", code, answer)
    assert answer["first_refused"][0]["number"] == 1


def test_the_history_of_a_folder_without_releases_is_empty(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, answer = run("releases", "--history", capsys=capsys)
    check_answer("releases --history", code, answer)
    assert (code, answer) == (Exit.DONE, {"changes": [], "damaged": 0})


def test_an_interrupt_is_json_under_json(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("queryloop.commands.config.masked", interrupt)
    assert run("config", capsys=capsys) == (Exit.INTERRUPTED, {"error": "interrupted", "exit_code": 130})


def test_a_full_disk_is_said_in_one_line(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "data/ledger.sqlite")

    monkeypatch.setattr("queryloop.commands.config.masked", fail)
    assert cli.main(["config"]) == Exit.FAILED
    assert capsys.readouterr().err == "queryloop: [Errno 28] No space left on device: 'data/ledger.sqlite'\n"


@given(st.text())
def test_clean_text_prints_whole_and_moves_nothing(text: str) -> None:
    shown = clean(text)
    assert all(one.isprintable() or one in "\u200c\u200d" for one in shown)
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "a\rb", "\u202eevil", "\u2066x", "\x07", "\ud800", "a\tb\nc"])
def test_what_could_move_a_terminal_is_escaped(text: str) -> None:
    assert clean(text).startswith(("\\", "a\\"))
    assert clean(text).isascii()


@given(st.floats(0, 4e9))
def test_times_are_rfc_3339_whatever_is_nested(seconds: float) -> None:
    found = with_times({"shards": [{"latest_ts": seconds}], "ts": seconds, "counts": 1, "last_ts": None})
    assert found["shards"][0]["latest_ts"] == found["ts"] == rfc3339(seconds)
    assert RFC3339.fullmatch(found["ts"])
    assert (found["counts"], found["last_ts"]) == (1, None)
