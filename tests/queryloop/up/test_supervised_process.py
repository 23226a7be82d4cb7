"""A supervisor starts its room again after a pause that grows; time and processes are the test's own."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from queryloop.up.supervised_process import Room, Supervisor, answers_http, pause_after, room_environ
from streams.runtime.processes import free_port

ROOM = Room("serving", {}, Path("serving.log"), ready=lambda child: True)


@dataclass
class FakeChild:
    """A process that ends when the test sets its return code."""

    returncode: int | None = None
    stopped_after: float | None = None
    logged: str = ""

    def last_line(self) -> str:
        return self.logged

    def stop(self, grace_s: float) -> int:
        self.stopped_after = grace_s
        return 0


class Supervised:
    """A supervisor, the lines it printed, and the processes it started."""

    def __init__(self) -> None:
        self.printed: list[str] = []
        self.children: list[Any] = []
        self.supervisor = Supervisor(ROOM, self.printed.append, self._start)

    def _start(self, room: Room) -> Any:
        self.children.append(FakeChild())
        return self.children[-1]


@pytest.fixture
def room() -> Supervised:
    room = Supervised()
    room.supervisor.start(0.0)
    return room


def test_a_running_process_is_left_alone(room: Supervised) -> None:
    for now in (1.0, 2.0, 300.0):
        room.supervisor.check(now)
    assert (len(room.children), room.printed, room.supervisor.restarts) == (1, [], 0)


def test_a_crashed_process_is_restarted_after_a_pause_and_reported_once(room: Supervised) -> None:
    room.children[0].returncode = -9
    for now in (5.0, 5.2, 5.8):
        room.supervisor.check(now)
    assert len(room.children) == 1
    room.supervisor.check(6.0)
    assert (len(room.children), room.supervisor.restarts) == (2, 1)
    assert room.printed == ["serving was killed by signal 9; it starts again in 1 s; log: serving.log"]


def test_the_pause_grows_while_it_fails_and_shrinks_when_it_ran_for_a_minute(room: Supervised) -> None:
    now, pauses = 0.0, []
    for lifetime in (1.0, 1.0, 1.0, 61.0, 1.0):
        now += lifetime
        room.children[-1].returncode = 1
        room.supervisor.check(now)
        before = len(room.children)
        pause = 0.0
        while len(room.children) == before:
            pause += 0.5
            room.supervisor.check(now + pause)
        now += pause
        pauses.append(pause)
    assert pauses == [1.0, 2.0, 4.0, 1.0, 2.0]


def test_a_worker_that_cannot_read_the_log_is_not_started_again_and_that_is_said_once(room: Supervised) -> None:
    room.children[0].returncode, room.children[0].logged = 65, "event=log_unreadable offset=7"
    for now in (1.0, 2.0, 100.0):
        room.supervisor.check(now)
    assert len(room.children) == 1
    assert room.printed == [
        "serving ended with code 65: event=log_unreadable offset=7; it is not started again; log: serving.log"
    ]


def test_the_reason_that_a_process_logged_last_is_said_with_its_end(room: Supervised) -> None:
    room.children[0].returncode, room.children[0].logged = 1, "the disk is full: /data/shards"
    room.supervisor.check(1.0)
    assert room.printed == ["serving ended with code 1: the disk is full: /data/shards; it starts again in 1 s; log: serving.log"]


def test_pauses_have_a_bound() -> None:
    assert [pause_after(failures) for failures in (1, 2, 3, 5, 6, 400)] == [1, 2, 4, 16, 30, 30]


def test_stopping_gives_the_grace_and_starts_nothing_again(room: Supervised) -> None:
    room.children[0].returncode = 1
    room.supervisor.check(1.0)
    room.supervisor.stop()
    assert room.children[0].stopped_after == ROOM.grace_s
    room.children[0].returncode = None
    room.supervisor.check(100.0)
    assert len(room.children) == 1


def test_the_users_own_variables_win() -> None:
    environ = room_environ({"OMP_WAIT_POLICY": "ACTIVE"}, threads=3)
    assert (environ["OMP_WAIT_POLICY"], environ["OMP_NUM_THREADS"], environ["GOMP_SPINCOUNT"]) == ("ACTIVE", "3", "0")


class Page(BaseHTTPRequestHandler):
    """Answers 200 on /healthz, 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/healthz" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


def test_ready_is_an_answer_of_200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # no proxy is asked for what is on this machine
    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        door = f"http://127.0.0.1:{server.server_port}"
        assert answers_http(f"{door}/healthz")
        assert not answers_http(f"{door}/other")
        server.shutdown()
    assert not answers_http(f"http://127.0.0.1:{free_port()}/healthz", timeout_s=0.5)
