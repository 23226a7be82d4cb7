"""`queryloop prune`: a dry run that says why each thing goes or stays, and the same for real."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from queryloop import cli
from queryloop.exits import Exit
from queryloop.prune.command import show_bytes
from serving.releases import registry
from streams.runtime import artifacts
from streams.runtime.audit import name_user
from tests.support.command_table import check_answer
from tests.support.pruned_folder import DAY_S, list_files, make_releases, verify_all
from trainers.jobs.ledger import Ledger, State
from trainers.jobs.processes import hold_kind

AGE_S = 50 * DAY_S


def make_older(root: Path) -> None:
    """Move everything that was published or promoted 50 days back."""
    for manifest in root.glob("artifacts/*/*/manifest.json"):
        change_created(manifest)
    for release in root.glob("releases/r*/manifest.json"):
        content = msgspec.json.decode(release.read_bytes())
        for part in content["parts"].values():
            part["sha256"] = artifacts.digest(root / part["path"] / "manifest.json")
        release.write_bytes(msgspec.json.encode(content))
        change_created(release)
    (root / "audit.jsonl").write_bytes(b"")


def change_created(manifest: Path) -> None:
    content = msgspec.json.decode(manifest.read_bytes())
    made = msgspec.convert(content["created"], type=artifacts.datetime).timestamp() - AGE_S
    manifest.chmod(0o644)
    content["created"] = artifacts.datetime.fromtimestamp(made, artifacts.UTC)
    manifest.write_bytes(msgspec.json.encode(content))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five releases of 50 days ago, of which two are kept by the settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUERYLOOP_PRUNE_KEEP_RELEASES", "2")
    make_releases(tmp_path / "data", 5)
    make_older(tmp_path / "data")
    assert len(verify_all(tmp_path / "data")) == 5
    return tmp_path / "data"


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = cli.main(["prune", "--json", *words])
    found = json.loads(capsys.readouterr().out)
    check_answer("prune", code, found)
    return code, found


def test_without_yes_it_says_what_would_go_and_why_the_rest_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list_files(root)
    code, found = answer(capsys)
    assert (code, found["dry_run"], found["run"]) == (Exit.DONE, True, None)
    assert [one["name"] for one in found["removed"] if one["what"] == "release"] == ["r0000", "r0001", "r0002"]
    assert found["removed"][0]["why"] == "made 50 days ago"
    assert {one["name"]: one["why"] for one in found["kept"] if one["what"] == "release"} == {
        "r0003": "previous: `releases rollback` goes back to it",
        "r0004": "live",
    }
    assert found["bytes"] == sum(one["bytes"] for one in found["removed"]) > 3000
    assert list_files(root) == before


def test_the_text_is_a_table_and_a_sum(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prune"]) == Exit.DONE
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("goes") and "r0001" in line and "made 50 days ago" in line for line in lines)
    assert any(line.startswith("stays") and "part of r0003" in line for line in lines)
    assert lines[-1].endswith("would be removed: nothing is changed without --yes")


def test_with_yes_it_does_what_the_dry_run_said_as_a_run_of_the_job(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, planned = answer(capsys)
    code, found = answer(capsys, "--yes")
    assert (code, found["removed"], found["kept"]) == (Exit.DONE, planned["removed"], planned["kept"])
    assert verify_all(root) == ["r0003", "r0004"]
    run = Ledger(root / "ledger.sqlite").run(found["run"])
    assert (run.kind, run.state, run.outcome["bytes"]) == ("prune", State.SUCCEEDED, found["bytes"])
    assert answer(capsys, "--yes")[1]["removed"] == []


def test_releases_lists_what_was_pruned_and_refuses_to_promote_it(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "--yes")
    assert cli.main(["releases", "--json"]) == Exit.DONE
    rows = json.loads(capsys.readouterr().out)["releases"]
    check_answer("releases", 0, {"releases": rows, "broken": []})
    assert [one["state"] for one in rows] == ["pruned", "pruned", "pruned", "previous", "champion"]
    assert (rows[0]["pruned"]["by"], rows[0]["pruned"]["run"], rows[4]["pruned"]) == (name_user(), None, None)
    assert set(rows[0]["parts"]) == {"policy", "predictor", "index"}
    assert cli.main(["releases"]) == Exit.DONE
    assert f"UTC by {name_user()}" in capsys.readouterr().out
    assert cli.main(["releases", "promote", "r0001"]) == Exit.FAILED
    assert "release r0001 was pruned by" in capsys.readouterr().err
    assert registry.read_rollout(root).champion == "r0004"


def test_of_two_at_once_the_second_one_is_told_to_wait(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold_kind(root, "prune"):
        code, found = answer(capsys, "--yes")
        assert (code, "another run of the job prune" in found["error"]) == (Exit.BUSY, True)
        assert answer(capsys)[0] == Exit.DONE, "a dry run needs no lock"
    assert len(verify_all(root)) == 5


def test_what_cannot_be_removed_is_named_and_the_run_failed(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    code, found = answer(capsys, "--yes")
    assert code == Exit.FAILED
    assert f"Permission denied: '{os.fspath(Path('data') / 'artifacts')}" in found["error"]
    (run,) = Ledger(root / "ledger.sqlite").runs()
    assert (run.state, run.outcome["detail"]) == (State.FAILED, found["error"])
    monkeypatch.undo()
    monkeypatch.chdir(root.parent)
    monkeypatch.setenv("QUERYLOOP_PRUNE_KEEP_RELEASES", "2")
    assert answer(capsys, "--yes")[0] == Exit.DONE
    assert verify_all(root) == ["r0003", "r0004"]


def test_an_empty_folder_is_no_fault_and_stays_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(capsys) == (0, {"dry_run": True, "run": None, "bytes": 0, "removed": [], "kept": []})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (56_789_000, "57 MB"), (3.2e15, "3200 TB")]
)
def test_sizes_have_two_or_three_digits(number: float, text: str) -> None:
    assert show_bytes(number) == text
