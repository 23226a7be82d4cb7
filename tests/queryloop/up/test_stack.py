"""The stack of one machine, with real processes: up, watched, started again, and nothing left whatever way it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from queryloop.settings import Settings
from queryloop.up.stack import Stack, UpError, Watcher
from streams.brokers.topics import KafkaSettings
from streams.runtime.processes import free_port
from streams.runtime.settings import DataSettings
from streams.store.counted_log import AnotherLog, claim_log
from streams.worker.settings import WorkerSettings
from trainers.jobs.ledger import Ledger


def wait_for(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def settings_in(folder: Path) -> Settings:
    base = Settings(data=DataSettings(dir=folder), worker=WorkerSettings(port=free_port()), kafka=KafkaSettings(port=0))
    free = {name: getattr(base, name).model_copy(update={"port": 0}) for name in ("serving", "timetable")}
    return base.model_copy(update=free)


def alive(pids: list[int]) -> list[int]:
    """Those that still run; a zombie does not."""
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_killed_room_is_started_again_and_everything_stops(tmp_path: Path) -> None:
    said: list[str] = []
    with Stack(settings_in(tmp_path), rooms=("trainers",), print_line=said.append) as stack:
        first = stack.child("trainers")
        written = json.loads((tmp_path / "run" / "up.json").read_text())
        assert (written["pid"], written["bootstrap"], written["serving"]) == (os.getpid(), stack.bootstrap, stack.urls.serving)
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: stack.restarts["trainers"] == 1)
        again = stack.child("trainers")
        ledger = Ledger(tmp_path / "ledger.sqlite")
        wait_for(lambda: (beat := ledger.heartbeat()) is not None and beat.pid == again.pid)
    assert again.returncode == 0
    assert alive([first.pid, again.pid]) == []
    assert not (tmp_path / "run" / "up.json").exists()
    assert "in memory" in said[0]
    assert "trainers was killed by signal 9; it starts again in 1 s" in said[1]
    assert ledger.heartbeat() is None


def test_a_killed_broker_comes_back_at_its_address(tmp_path: Path) -> None:
    said: list[str] = []
    with Stack(settings_in(tmp_path), rooms=(), print_line=said.append) as stack:
        child, address = stack.broker.child, stack.bootstrap  # type: ignore[attr-defined]
        child.kill()
        wait_for(lambda: stack.broker.child not in (None, child))  # type: ignore[attr-defined]
        assert stack.bootstrap == address
    assert "the broker ended with code -9" in said[1]


def test_a_port_in_use_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = settings_in(tmp_path)
        busy = settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": taken.getsockname()[1]})})
        with pytest.raises(UpError, match=r"in use.*serving\.port \(QUERYLOOP_SERVING_PORT\)"), Stack(busy):
            pass


def test_the_broker_of_a_stack_has_the_same_address_after_a_restart(tmp_path: Path) -> None:
    chosen = free_port()
    settings = settings_in(tmp_path).model_copy(update={"kafka": KafkaSettings(port=chosen)})
    for _ in range(2):
        with Stack(settings, rooms=(), print_line=print) as stack:
            assert stack.bootstrap == f"127.0.0.1:{chosen}"


def test_the_brokers_port_in_use_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = settings_in(tmp_path).model_copy(update={"kafka": KafkaSettings(port=taken.getsockname()[1])})
        said = rf"in use by process {os.getpid()} .*kafka\.port \(QUERYLOOP_KAFKA_PORT"
        with pytest.raises(UpError, match=said), Stack(settings, rooms=()):
            pass


def test_another_topic_on_a_stacks_data_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    claim_log(tmp_path, KafkaSettings(topic="other"))
    with pytest.raises(AnotherLog, match="count topic other"), Stack(settings_in(tmp_path)):
        pass


def test_a_second_stack_in_a_data_folder_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with (
        Stack(settings, rooms=(), print_line=print),
        pytest.raises(UpError, match="another queryloop up works in"),
        Stack(settings, rooms=()),
    ):
        pass
    with Stack(settings, rooms=(), print_line=print):
        pass


def test_an_external_broker_that_is_down_is_named(tmp_path: Path) -> None:
    settings = settings_in(tmp_path).model_copy(update={"kafka": KafkaSettings(bootstrap=f"127.0.0.1:{free_port()}")})
    with pytest.raises(UpError, match=r"kafka\.bootstrap"), Stack(settings, rooms=()):
        pass


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UpError, match=r"data\.dir = .*file"), Stack(settings_in(tmp_path / "file"), rooms=()):
        pass
    (tmp_path / "ledger.sqlite").mkdir(parents=True)
    with pytest.raises(UpError, match=r"ledger\.sqlite"), Stack(settings_in(tmp_path), rooms=("trainers",)):
        pass
    assert not (tmp_path / "run" / "up.json").exists()


def test_the_watching_thread_outlives_its_block() -> None:
    looks: list[int] = []
    watcher = Watcher(lambda: looks.append(1))
    with watcher:
        wait_for(lambda: bool(looks))
    seen = len(looks)
    assert watcher._thread.is_alive()
    watcher.end()
    assert not watcher._thread.is_alive()
    assert len(looks) == seen


def test_ending_a_watcher_that_never_began_is_harmless() -> None:
    Watcher(lambda: None).end()


@contextmanager
def queryloop_up(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[int], list[str]]]:
    """The real command with all rooms, once it is ready, the pids of all that it started, and what it has said."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("QUERYLOOP_")}
    ports = {
        "QUERYLOOP_SERVING_PORT": "0",
        "QUERYLOOP_TIMETABLE_PORT": "0",
        "QUERYLOOP_WORKER_PORT": str(free_port()),
        "QUERYLOOP_KAFKA_PORT": str(free_port()),
    }
    environ = {**bare, **ports, "QUERYLOOP_DATA_DIR": str(folder), "QUERYLOOP_CONFIG": os.devnull}
    command = [sys.executable, "-m", "queryloop", "up"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            while not any(line.startswith("ready in") for line in lines):
                lines.append(process.stdout.readline())
                assert lines[-1], "".join(lines)
            yield process, [child.pid for child in psutil.Process(process.pid).children(recursive=True)], lines
        finally:
            process.kill()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.full), signal.SIGTERM])
def test_the_command_stops_in_order_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with queryloop_up(tmp_path) as (process, pids, lines):
        assert len(pids) >= 4
        assert any(line.startswith("ready in") for line in lines)
        address = json.loads((tmp_path / "run" / "up.json").read_text())["bootstrap"]
        assert any(f"broker at {address}" in line for line in lines)
        assert any("lists are refused (503) until a release is live" in line for line in lines)
        process.send_signal(number)
        said, _ = process.communicate(timeout=90)
        assert process.returncode == 0, said
        assert "stopping trainers, serving, worker, broker" in said
    assert alive(pids) == []
    assert "event=worker_stopped" in (tmp_path / "logs" / "streams.log").read_text()
    assert "event=timetable_stopped" in (tmp_path / "logs" / "trainers.log").read_text()


def test_nothing_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    with queryloop_up(tmp_path) as (process, pids, _):
        process.kill()
        process.wait()
        wait_for(lambda: alive(pids) == [], timeout_s=15)
