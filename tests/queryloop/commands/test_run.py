"""`queryloop run`: refused where the daemon runs on other settings, lines of progress in a log, the outcome in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from queryloop import cli
from queryloop.commands.job_progress import JobProgress, last_line
from queryloop.commands.run import describe_run
from queryloop.exits import Exit
from queryloop.settings import Settings
from streams.runtime.settings import load_settings
from streams.runtime.settings_records import record_settings
from tests.support.clocks import Clock
from trainers.jobs.ledger import Ledger, Run, State
from trainers.jobs.settings import affects_jobs


def write(folder: Path, text: str) -> Path:
    path = folder / "q.toml"
    path.write_text(f'[data]\ndir = "{folder}"\n{text}')
    return path


@pytest.fixture
def daemon(tmp_path: Path) -> Ledger:
    """A trainers' daemon that started with temperature 0.9, as its heartbeat and record say."""
    file = write(tmp_path, "[search]\nbeam = 5\n")
    settings = load_settings(Settings, file, {})
    record_settings("trainers", settings, tmp_path, file, {})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    ledger.beat(os.getpid())
    return ledger


def test_only_settings_that_change_what_a_job_does_are_compared_with_the_daemons() -> None:
    assert [
        key for key in ("worker.port", "kafka.port", "emitter.linger_ms", "timetable.port", "product.task") if affects_jobs(key)
    ] == []
    assert all(
        affects_jobs(key) for key in ("search.beam", "policy.base", "lake.url", "serving.temperature", "events.default_task")
    )


def test_a_run_with_edited_settings_is_refused_naming_them_and_what_to_do(
    daemon: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "[search]\nbeam = 6\n[serving]\ntemperature = 0.7\nkey = 'hunter2hunter2'\nport = 9999\n")
    assert cli.main(["--config", str(file), "run", "policy"]) == Exit.USAGE
    said = capsys.readouterr().err
    for part in (
        "search.beam = 6, the daemon has 5",
        "serving.temperature = 0.7",
        str(file),
        "queryloop up",
        "--with-daemon-settings",
    ):
        assert part in said
    assert "hunter2" not in said
    assert "serving.port" not in said
    assert daemon.requested() == []


def test_status_shows_what_a_process_runs_on_other_than_now(
    daemon: Ledger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "[search]\nbeam = 6\n[worker]\nport = 1\n[serving]\nport = 2\n")
    assert cli.main(["--config", str(file), "status"]) == Exit.UNAVAILABLE
    said = capsys.readouterr().out
    assert "trainers runs on settings read at" in said
    assert "search.beam" in said


def test_progress_on_a_log_is_a_line_at_once_and_then_every_quarter_of_a_minute(tmp_path: Path) -> None:
    ledger, out, clock = Ledger(tmp_path / "ledger.sqlite"), io.StringIO(), Clock()
    number = ledger.start(ledger.request("policy"), 1).id
    log = tmp_path / "job.log"
    log.write_text("ts=2026-01-01T00:00:00+0000 level=INFO logger=x event=stage job=policy stage=search prompts=2000\n")
    ledger.set_log(number, log)
    with JobProgress(ledger, number, Console(file=out, width=80), clock) as show:
        for _ in range(180):
            show()
            clock.now += 0.5
    lines = out.getvalue().splitlines()
    assert lines[0] == f"policy job {number} running, 0 s  event=stage job=policy stage=search prompts=2000"
    assert [line.split(", ")[1].split(" ")[0] for line in lines] == ["0", "15", "30", "45", "60", "75"]


def test_the_last_line_of_a_log_cannot_control_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\n\x1b[2Jtwo\r50 %\r60 %")
    assert last_line(str(tmp_path / "log")) == "60 %"
    assert last_line(str(tmp_path / "none")) == ""


def test_an_outcome_is_one_line_without_the_names_of_its_parts() -> None:
    skipped = Run(1, "index", State.SKIPPED, 0.0, 1.0, 1.0, 1, {"detail": "there is nothing [bold] to index"}, None)
    assert describe_run(skipped) == "index job 1 skipped in 0 s: there is nothing [bold] to index"
    done = Run(
        2, "policy", State.SUCCEEDED, 0.0, 1.0, 61.0, 1, {"detail": "r0001 live", "release": "r0001", "gate": {}, "x": None}, None
    )
    assert describe_run(done) == "policy job 2 succeeded in 60 s: r0001 live - release r0001"


@pytest.mark.parametrize("flag", ["--from-base", "--force"])
@pytest.mark.parametrize("kind", ["ctr", "index"])
def test_options_of_the_policy_go_with_no_other_job(
    kind: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--config", str(write(tmp_path, "")), "run", kind, flag]) == Exit.USAGE
    assert f"--from-base and --force go with `run policy`, not with `run {kind}`" in capsys.readouterr().err
    assert not (tmp_path / "ledger.sqlite").exists()


def test_the_daemons_job_gets_the_options(daemon: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger, "daemon_lives", lambda ledger: not ledger.requested())
    code = cli.main(["--config", str(write(tmp_path, "")), "run", "policy", "--from-base", "--force", "--with-daemon-settings"])
    assert code == Exit.FAILED, "the daemon died before the run began"
    (request,) = daemon.requested()
    assert daemon.options(request.id) == {"from_base": True, "force": True}
