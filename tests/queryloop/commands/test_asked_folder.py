"""Commands take no stranger's counts: a process at the address of the settings that works on another data folder is not asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from queryloop import cli
from queryloop.commands.asked_folder import expected_folder
from queryloop.exits import Exit
from queryloop.settings import Settings
from streams.runtime.data_folder import DataFolder, find_data_folder, open_data_folder
from streams.runtime.processes import free_port
from streams.runtime.settings import load_settings
from streams.store.shard_registry import ShardHolder, ShardRegistry

LAG = {"records": 7, "events": 7, "seconds": 0.0, "open_transaction_records": 0, "shards": {}, "missing": []}


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[str]:
    """Another stack's worker, and at another port its server, on the folder `theirs`; the worker's port."""
    theirs = open_data_folder(tmp_path / "theirs")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in theirs.headers(with_path=True).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(LAG).encode())

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as worker, HTTPServer(("127.0.0.1", 0), Handler) as server:
        for one in (worker, server):
            Thread(target=one.serve_forever, daemon=True).start()
        (tmp_path / "serving-port").write_text(str(server.server_port))
        yield str(worker.server_port)
        for one in (worker, server):
            one.shutdown()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stranger: str) -> Path:
    """A project of its own, whose settings file has the address at which the stranger listens."""
    for name in ("QUERYLOOP_WORKER_PORT", "QUERYLOOP_WORKER_HOST", "QUERYLOOP_SERVING_PORT", "QUERYLOOP_SERVING_HOST"):
        monkeypatch.delenv(name, raising=False)
    project = tmp_path / "here"
    project.mkdir()
    monkeypatch.chdir(project)
    serving = (tmp_path / "serving-port").read_text()
    (project / "queryloop.toml").write_text(
        f"[worker]\nport = {stranger}\n[serving]\nport = {serving}\n[kafka]\npartitions = 1\n"
    )
    open_data_folder(project / "data")
    return project


@pytest.mark.parametrize("command", [["lag"], ["windows", "--query", "q"], ["successors", "--query", "q"], ["delays"]])
def test_a_read_refuses_a_worker_of_another_folder_and_names_both(
    here: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command) == Exit.UNAVAILABLE
    said = capsys.readouterr()
    assert f"another data folder ({here.parent / 'theirs'}), the settings name {here / 'data'}" in said.err
    assert "QUERYLOOP_WORKER_HOST or QUERYLOOP_WORKER_PORT" in said.err
    assert said.out == ""


def test_status_calls_the_rooms_of_another_folder_down(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--json"]) == Exit.UNAVAILABLE
    found = json.loads(capsys.readouterr().out)
    for room, section in (("streams", "WORKER"), ("serving", "SERVING")):
        assert not found[room]["up"] and "records" not in found[room]
        assert str(here.parent / "theirs") in found[room]["error"] and f"QUERYLOOP_{section}_HOST" in found[room]["error"]


def test_an_address_in_the_environment_is_asked_whatever_its_folder(
    here: Path, stranger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUERYLOOP_WORKER_PORT", stranger)
    assert cli.main(["lag", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["records"] == 7


def test_a_recorded_worker_whose_port_is_another_stacks_now_is_not_asked(
    here: Path, stranger: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "queryloop.toml").write_text("[kafka]\npartitions = 1\n")
    monkeypatch.setenv("QUERYLOOP_WORKER_PORT", str(free_port()))
    ShardRegistry(here / "data", ShardHolder("gone", f"http://127.0.0.1:{stranger}", 1)).add(0)
    assert cli.main(["lag"]) == Exit.UNAVAILABLE
    assert str(here.parent / "theirs") in capsys.readouterr().err
    assert cli.main(["quarantine", "list"]) == Exit.UNAVAILABLE
    assert "there are no shards in data/shards" in capsys.readouterr().err


def test_where_any_folder_will_do(tmp_path: Path) -> None:
    unused = {"QUERYLOOP_DATA_DIR": str(tmp_path / "unused"), "QUERYLOOP_CONFIG": "/dev/null"}
    used = {**unused, "QUERYLOOP_DATA_DIR": str(open_data_folder(tmp_path / "used").path)}
    (tmp_path / "port.toml").write_text("[worker]\nport = 7000\n")

    def folder(environ: dict[str, str], config: Path | None = None) -> DataFolder | None:
        return expected_folder(load_settings(Settings, config, environ), "worker", environ)

    assert folder(used) == find_data_folder(tmp_path / "used")
    assert folder(unused) == DataFolder(tmp_path / "unused", None)  # at the default address is somebody else
    assert folder({**used, "QUERYLOOP_WORKER_HOST": "127.0.0.1"}) is None
    assert folder(used, tmp_path / "port.toml") == find_data_folder(tmp_path / "used")
    assert folder(unused, tmp_path / "port.toml") is None  # the folder is on another machine
    assert folder({**used, "QUERYLOOP_WORKER_HOST": ""}) == find_data_folder(tmp_path / "used")
