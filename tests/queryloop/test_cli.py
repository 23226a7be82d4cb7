"""The command line: instant help with examples, exit codes, errors in one line, JSON from every command that reads."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import import_module
from pathlib import Path

import pytest

from queryloop import cli
from queryloop.exits import Exit
from trainers.jobs.ledger import Ledger, State

COMMANDS = ("up", "demo", "replay", "broker", "run", "releases", "status", "config")
COMMANDS += ("windows", "successors", "lag", "delays", "verify", "torture")
HEAVY = ("torch", "faust", "duckdb", "pyarrow", "numpy", "pydantic", "transformers", "rich")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from queryloop.cli import make_parser
make_parser().format_help()
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys=capsys)
    assert all(f"    {command} " in text for command in COMMANDS)
    assert all(f"  {code.value} " in text for code in Exit)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example_that_it_would_accept(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys=capsys)
    example = shlex.split(text.rpartition("example: queryloop ")[2])
    assert example[0] == command
    assert callable(import_module(cli.make_parser().parse_args(example).module).run)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["dance"],
        ["run", "sft"],
        ["demo", "--seed", "-1"],
        ["replay", "log", "--as-of", "yesterday"],
        ["replay", "log", "--speed", "0"],
    ],
)
def test_wrong_usage_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == Exit.USAGE
    assert "queryloop" in capsys.readouterr().err


def test_a_settings_typo_ends_with_2_and_one_line(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "queryloop.toml").write_text("[kafka]\npartitoins = 3\n")
    assert cli.main(["config"]) == Exit.USAGE
    said = capsys.readouterr()
    assert said.out == ""
    assert "kafka.partitoins" in said.err
    assert "did you mean partitions?" in said.err
    assert "Traceback" not in said.err


def test_config_prints_json_on_demand(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["kafka"]["topic"] == "events"


@pytest.mark.parametrize("words", [["--config", "own.toml", "config", "--json"], ["config", "--json", "--config", "own.toml"]])
def test_the_settings_file_may_be_named_before_or_after_the_command(
    words: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "own.toml").write_text("[serving]\nport = 8123\n")
    assert cli.main(words) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["serving"]["port"] == 8123


def test_releases_of_an_empty_folder_say_how_to_make_one(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases"]) == Exit.DONE
    assert "queryloop run policy" in capsys.readouterr().out
    assert cli.main(["releases", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {"releases": [], "broken": []}


def test_going_back_without_a_previous_release_fails_and_says_so(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "rollback"]) == Exit.FAILED
    assert "no previous release" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["releases", "promote"], ["releases", "rollback", "r0001"]])
def test_a_release_id_goes_with_promote_alone(words: list[str], elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == Exit.USAGE
    assert "promote" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["r9999", "../../etc", "r0000/../r0001"])
def test_promoting_what_does_not_exist_fails(name: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "promote", name]) == Exit.FAILED
    assert capsys.readouterr().err.startswith("queryloop: ")


def test_a_corrupt_release_is_named_and_the_exit_code_says_so(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = elsewhere / "data" / "releases" / "r0003"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text('{"id": "r00')
    assert cli.main(["releases", "--json"]) == Exit.FAILED
    assert "r0003" in json.loads(capsys.readouterr().out)["broken"][0]


def test_status_says_what_is_down(elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYLOOP_WORKER_PORT", "1")
    monkeypatch.setenv("QUERYLOOP_SERVING_PORT", "2")
    ledger = Ledger(elsewhere / "data" / "ledger.sqlite", clock=lambda: 100.0)
    ledger.start(run := ledger.request("ctr"), pid=1)
    ledger.finish(run, State.FAILED, {"detail": "[red]no clicks[/red] :smile:"})
    assert cli.main(["status", "--json"]) == Exit.UNAVAILABLE
    found = json.loads(capsys.readouterr().out)
    assert [found[room]["up"] for room in ("streams", "serving", "trainers")] == [False, False, False]
    assert found["trainers"]["runs"][0]["state"] == "failed"
    assert cli.main(["status"]) == Exit.UNAVAILABLE
    told = capsys.readouterr().out
    assert "[red]no clicks[/red] :smile:" in told
    assert "Errno" not in told


def test_a_server_without_a_release_is_not_down_but_not_ready(
    elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NotReady(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"ready": False, "release": None, "error": "no release [yet]"}).encode()
            self.send_response(503)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), NotReady) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("QUERYLOOP_WORKER_PORT", "1")
        monkeypatch.setenv("QUERYLOOP_SERVING_PORT", str(server.server_port))
        assert cli.main(["status"]) == Exit.UNAVAILABLE
        told = capsys.readouterr().out
        assert "serving   not ready: no release [yet]\n" in told
        assert "streams   not running (start `queryloop up`)\n" in told
        assert cli.main(["status", "--json"]) == Exit.UNAVAILABLE
        serving = json.loads(capsys.readouterr().out)["serving"]
        assert (serving["up"], serving["status"], serving["error"]) == (False, 503, "no release [yet]")
        server.shutdown()


def test_a_defect_of_ours_is_not_dressed_up_as_an_error_of_the_user(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("queryloop.commands.config.masked", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["config"])
