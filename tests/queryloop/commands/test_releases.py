"""`queryloop releases`: who made each release and what changed, readable at 80 columns; the history of what went live."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from queryloop import cli
from queryloop.exits import Exit
from serving.releases import registry
from streams.runtime import artifacts
from streams.runtime.audit import Actor, acting, name_user
from tests.queryloop.test_tables import on_terminal
from tests.support.command_table import check_answer


def make_artifact(root: Path, kind: str) -> Path:
    return artifacts.publish(root / "artifacts", kind, lambda folder: (folder / "x").write_bytes(b"x"), {}).path


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cold start, an index release, a refused challenger, and a rollback by hand."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    policy, index = make_artifact(root, "policy"), make_artifact(root, "index")
    with acting(Actor("job policy", 1)):
        first = registry.publish(root, policy=policy, meta={"job": "policy", "start": "sft"})
        registry.promote(root, first.id)
    with acting(Actor("job index", 2)):
        second = registry.publish(root, policy=policy, index=index, meta={"job": "index", "from": first.id})
        registry.promote(root, second.id)
    gate = {"passed": False, "reasons": ["[red]fewer well formed lists :smile:"], "challenger": {"aec_judge": 0.12345}}
    with acting(Actor("job policy", 3)):
        meta = {"job": "policy", "start": "dpo", "from": second.id}
        registry.publish(root, policy=make_artifact(root, "policy"), index=index, gate=gate, meta=meta)
    assert cli.main(["releases", "rollback"]) == Exit.DONE
    return root


def test_each_row_says_who_made_it_what_changed_and_how_it_was_judged(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["releases"]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "release"
    for number, parts in enumerate(
        (
            ("r0000", "champion", "job policy, run 1", "policy", "–"),
            ("r0001", "previous", "job index, run 2", "index", "–"),
            ("r0002", "–", "job policy, run 3", "policy", "refused"),
        ),
        1,
    ):
        assert all(part in lines[number] for part in parts), lines[number]
    assert "r0002 refused: [red]fewer well formed lists :smile:; aec judge 0.123" in lines


def test_the_table_is_readable_at_80_columns(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch, 80)
    assert cli.main(["releases"]) == Exit.DONE
    lines = re.sub(r"\x1b\[[\d;]*m", "", terminal.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.strip().startswith(("r0000 ", "r0001 ", "r0002 ")) for line in lines) >= 3
    assert "…" not in terminal.getvalue()


def test_json_has_the_same_in_the_documented_shape(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code = cli.main(["releases", "--json"])
    answer = json.loads(capsys.readouterr().out)
    check_answer("releases", code, answer)
    found = [(one["release"], one["state"], one["job"], one["run"], one["changed"], one["verdict"]) for one in answer["releases"]]
    assert found == [
        ("r0000", "champion", "policy", 1, ["policy"], None),
        ("r0001", "previous", "index", 2, ["index"], None),
        ("r0002", None, "policy", 3, ["policy"], "refused"),
    ]


def test_the_history_says_what_went_live_when_and_by_whom(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    code = cli.main(["releases", "--history", "--json"])
    answer = json.loads(capsys.readouterr().out)
    check_answer("releases --history", code, answer)
    assert [(one["action"], one["release"], one["by"], one["run"]) for one in answer["changes"]] == [
        ("promote", "r0000", "job policy", 1),
        ("promote", "r0001", "job index", 2),
        ("rollback", "r0000", name_user(), None),
    ]
    assert cli.main(["releases", "--history"]) == Exit.DONE
    assert f"rollback  r0000    r0001        {name_user()}" in capsys.readouterr().out


def test_a_damaged_line_of_the_record_is_said(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (released / "audit.jsonl").open("ab") as file:
        file.write(b"{cut")
    assert cli.main(["releases", "--history"]) == Exit.FAILED
    assert "1 lines of data/audit.jsonl cannot be read" in capsys.readouterr().out


def test_the_history_goes_with_no_step(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "rollback", "--history"]) == Exit.USAGE


def test_a_release_is_rejected_with_who_when_and_why_and_needs_force_to_go_live(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["releases", "reject", "r0001", "--reason", "[red]old index"]) == Exit.DONE
    out = capsys.readouterr().out
    assert re.search(rf"r0001 rejected on \d{{4}}-.* UTC by {re.escape(name_user())}: \[red\]old index", out)
    assert cli.main(["releases", "rollback"]) == Exit.FAILED, "the rejected one was the previous one"
    assert cli.main(["releases", "promote", "r0001"]) == Exit.FAILED
    assert "releases promote r0001 --force" in capsys.readouterr().err
    cli.main(["releases", "--json"])
    found = json.loads(capsys.readouterr().out)["releases"]
    assert [one["state"] for one in found] == ["champion", "rejected", None]
    assert (found[1]["rejected"]["by"], found[1]["rejected"]["reason"]) == (name_user(), "[red]old index")
    assert cli.main(["releases", "promote", "r0001", "--force"]) == Exit.DONE
    capsys.readouterr()
    code = cli.main(["releases", "--history", "--json"])
    answer = json.loads(capsys.readouterr().out)
    check_answer("releases --history", code, answer)
    assert [(one["action"], one["forced"], one["reason"]) for one in answer["changes"][-2:]] == [
        ("reject", False, "[red]old index"),
        ("promote", True, None),
    ]
    assert cli.main(["releases", "--history"]) == Exit.DONE
    assert "promote --force" in capsys.readouterr().out


def test_the_champion_is_not_rejected(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "reject", "r0000"]) == Exit.FAILED
    assert "r0000 is live, so it cannot be rejected: `queryloop releases rollback`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("reject",),
        ("rollback", "r0001"),
        ("reject", "r0001", "--force"),
        ("promote", "r0001", "--reason", "x"),
        ("reject", "r0001", "--reason", "x" * 501),
    ],
)
def test_options_that_do_not_go_with_the_step_are_wrong_usage(released: Path, words: tuple[str, ...]) -> None:
    assert cli.main(["releases", *words]) == Exit.USAGE
