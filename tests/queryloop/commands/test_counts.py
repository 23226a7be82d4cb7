"""`queryloop windows`, `successors`, `lag` and `delays`: a table for people, JSON for programs, exit codes for errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from queryloop import cli
from queryloop.exits import Exit
from streams.runtime.processes import free_port
from streams.store.shard_registry import ShardHolder, ShardRegistry

ROW = {"query": "q", "item": "[b]\x1b[2J", "position": 0, "impressions": 4, "clicks": 1, "raw_ctr": 0.25, "smoothed_ctr": 0.2}
CAPPED = {"impressions": 24_980, "clicks": 3, "session_cap": 20, "user_cap": 0}
WINDOWS = {"as_of": "2021-04-01", "total": 1, "left_out": CAPPED, "rows": [{**ROW, "coec": None}], "missing": []}

Serve = Callable[[int, dict[str, Any]], list[str]]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A worker's HTTP that answers everything with one status and body, found by the place of a shard; the paths it was asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUERYLOOP_WORKER_PORT", str(free_port()))
    servers: list[HTTPServer] = []

    def start(status: int, body: dict[str, Any]) -> list[str]:
        asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                return

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        ShardRegistry(tmp_path / "data", ShardHolder("one", f"http://127.0.0.1:{server.server_port}", 1)).add(0)
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_windows_are_a_table_in_which_no_text_harms(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    asked = serve(200, WINDOWS)
    assert cli.main(["windows", "--query", "red shoes", "--as-of", "2021-04-01", "--limit", "5"]) == Exit.DONE
    printed = capsys.readouterr().out
    assert asked == ["/v1/windows?query=red+shoes&as_of=2021-04-01&limit=5"]
    assert "\x1b" not in printed
    assert "0.25" in printed and "1 cells in the 14 days before 2021-04-01" in printed


@pytest.mark.parametrize(
    ("left_out", "printed"),
    [
        (CAPPED, "left out by counting.session_cap 20: 24980 impressions, 3 clicks"),
        (CAPPED | {"session_cap": 0}, "no cap: all of a session's lists count (counting.session_cap is 0, off)"),
    ],
)
def test_windows_say_what_the_caps_left_out_and_when_they_are_off(
    serve: Serve, left_out: dict[str, int], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(200, WINDOWS | {"left_out": left_out})
    assert cli.main(["windows", "--query", "q"]) == Exit.DONE
    assert printed in capsys.readouterr().out


def test_json_is_the_workers_own_answer(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    serve(200, WINDOWS)
    assert cli.main(["windows", "--query", "q", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == WINDOWS


@pytest.mark.parametrize(
    ("command", "answer", "printed"),
    [
        (
            ["successors", "--query", "q"],
            {"as_of": "2021-04-01", "followed": 3, "total": 1, "rows": [{"next_query": "n", "count": 3, "share": 1.0}]},
            "followed 3 times by 1 queries",
        ),
        (["lag"], {"records": None, "seconds": 2.5, "shards": {}}, "behind the log by – records, 2.5 seconds"),
        (
            ["delays"],
            {"clicks": 1, "p50_s": 1.0, "p90_s": 2.0, "p99_s": 3.0, "buckets": [{"upto_s": 1.0, "clicks": 1}]},
            "p50 1 s, p90 2 s, p99 3 s",
        ),
    ],
)
def test_each_read_has_a_summary(
    serve: Serve, capsys: pytest.CaptureFixture[str], command: list[str], answer: dict[str, Any], printed: str
) -> None:
    serve(200, {**answer, "missing": [1]})
    assert cli.main([*command, "--partial"]) == Exit.DONE
    out = capsys.readouterr().out
    assert printed in out
    assert "without the partitions 1" in out


@pytest.mark.parametrize(
    ("status", "code", "error", "printed"),
    [
        (400, Exit.USAGE, "query or item: one of them is needed", "one of them is needed"),
        (503, Exit.UNAVAILABLE, "no worker answers for partitions 1; or with partial=true", "with --partial"),
        (401, Exit.UNAVAILABLE, "set the header", "QUERYLOOP_WORKER_KEY"),
    ],
)
def test_a_workers_refusal_is_printed(
    serve: Serve, capsys: pytest.CaptureFixture[str], status: int, code: Exit, error: str, printed: str
) -> None:
    serve(status, {"error": error})
    assert cli.main(["windows", "--query", "q"]) == code
    assert printed in capsys.readouterr().err


def test_without_a_worker_the_command_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QUERYLOOP_WORKER_PORT", str(free_port()))
    assert cli.main(["lag"]) == Exit.UNAVAILABLE
    assert "no worker answers" in capsys.readouterr().err
