"""`queryloop replay`: what an isolated replay refuses before it starts, and what it prints when it is done."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from queryloop import cli
from queryloop.exits import Exit
from queryloop.replay.descriptions import describe_delivery, describe_isolated
from tests.support.command_table import check_answer
from tests.support.logs import START, query

SUMMARY: dict[str, Any] = {
    "log": "log.jsonl",
    "broker": "embedded",
    "lines": 1200,
    "seconds": 3.21,
    "counted": 1100,
    "duplicates": 90,
    "quarantined": {"invalid": 10},
    "latest_ts": 1_772_366_400.0,
    "rows": {"2026-03-02": {"windows": 7, "cooccurrence": 0}},
}


def test_a_replay_says_what_was_counted_and_where_the_tables_are() -> None:
    assert describe_isolated(SUMMARY, Path("out"), mapped=True).splitlines() == [
        "log.jsonl: 1,200 lines on embedded in 3.2 s",
        "counted 1,100, duplicates 90, quarantined: invalid 10",
        "tables in out/",
    ]


def test_a_day_without_windows_is_named() -> None:
    nothing = {"windows": 0, "cooccurrence": 0}
    text = describe_isolated(
        SUMMARY | {"rows": SUMMARY["rows"] | {"2020-01-01": nothing, "2030-01-01": nothing}}, Path("out"), mapped=True
    )
    assert text.splitlines()[-1] == (
        "no windows as of 2020-01-01, 2030-01-01: no impression of the 14 days before counts; "
        "the log's latest event is of 2026-03-01 12:00:00 UTC"
    )
    empty = SUMMARY | {"rows": {"2026-03-02": nothing}, "latest_ts": None}
    assert describe_isolated(empty, Path("out"), mapped=True).endswith("; the log has no readable event")


@pytest.mark.parametrize("out", ["taken", "taken/deeper"])
def test_an_out_that_is_no_folder_is_refused_before_anything_starts(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("queryloop.commands.replay.replay_isolated", lambda *arguments: pytest.fail("it has started"))
    (tmp_path / "taken").write_text("kept")
    (tmp_path / "log.jsonl").write_bytes(query("q", START))
    assert cli.main(["replay", "log.jsonl", "--isolated", "--as-of", "2020-01-01", "--out", out]) == Exit.USAGE
    assert f"--out {out}: taken is a file; name a folder" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "kept"


def test_a_replay_without_a_line_says_why(tmp_path: Path) -> None:
    assert "no line to send: the log is empty" in describe_isolated(SUMMARY | {"lines": 0}, tmp_path, mapped=True)
    assert "no line to send: the log is empty" in describe_delivery({"log": "l", "delivered": 0, "bootstrap": "b:1"})


def replay_isolated_log(folder: Path, capsys: pytest.CaptureFixture[str], *lines: bytes) -> tuple[int, dict[str, Any]]:
    (folder / "log.jsonl").write_bytes(b"\n".join(lines))
    code = cli.main(["replay", "log.jsonl", "--isolated", "--as-of", "2026-03-02", "--out", "out", "--json"])
    answer = json.loads(capsys.readouterr().out)
    check_answer("replay --isolated", code, answer)
    return code, answer


def test_an_isolated_replay_of_which_no_line_counts_fails_and_says_why_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one to a running system, which sends nothing then; the tables, empty, and quarantine.csv are there to be read."""
    monkeypatch.chdir(tmp_path)
    code, answer = replay_isolated_log(tmp_path, capsys, b'{"search": "x"}', b"no JSON")
    assert (code, answer["counted"], sum(answer["quarantined"].values())) == (Exit.FAILED, 0, 2)
    with (tmp_path / "out" / "quarantine.csv").open() as file:
        assert [row["number"] for row in csv.DictReader(file)] == ["1", "2"]


def test_an_isolated_replay_of_which_a_line_counts_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its answer is the tables, and quarantine.csv lists what is not in them."""
    monkeypatch.chdir(tmp_path)
    code, answer = replay_isolated_log(tmp_path, capsys, b"no JSON", query("q", START))
    assert (code, answer["counted"], sum(answer["quarantined"].values())) == (Exit.DONE, 1, 1)
