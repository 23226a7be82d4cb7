"""Processes that cannot start: for an unknown setting or a port in use each ends with a line that names the setting."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from queryloop.settings import Settings
from serving.settings import ServingSettings
from streams.brokers.topics import KafkaSettings
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child
from streams.runtime.settings import DataSettings
from streams.worker.settings import WorkerSettings


@dataclass(frozen=True)
class Ended:
    """How a process ended and what it printed."""

    code: int | None
    text: str


def run_all(commands: dict[str, list[str]], environ: dict[str, str], place: Path) -> dict[str, Ended]:
    """Run commands at the same time, each to its end."""
    with ExitStack() as stack:
        children = {
            name: stack.enter_context(Child(name, [sys.executable, "-m", *command], place / f"{name}.log", environ))
            for name, command in commands.items()
        }
        return {name: Ended(child.sleep(60), child.tail()) for name, child in children.items()}


ENTRIES = {"worker": ["streams"], "serving": ["serving"], "trainers": ["trainers"], "command line": ["queryloop", "config"]}


@pytest.fixture(scope="module")
def mistyped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Every process, started with a key that does not exist."""
    environ = to_environ(Settings()) | {"QUERYLOOP_DATA_FOLDER": "/tmp/x", "QUERYLOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    return run_all(ENTRIES, environ, tmp_path_factory.mktemp("mistyped"))


@pytest.mark.parametrize("name", ENTRIES)
def test_a_settings_typo_stops_every_process_with_the_key_and_what_is_allowed(mistyped: dict[str, Ended], name: str) -> None:
    assert mistyped[name].code == 2
    assert "QUERYLOOP_DATA_FOLDER: unknown key data.folder" in mistyped[name].text
    assert "allowed are dir" in mistyped[name].text
    assert "Traceback" not in mistyped[name].text


def test_a_typo_in_the_file_is_named_with_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "queryloop.toml"
    file.write_text("[kafka]\npartitons = 3\nsession_timeout_s = 0\n")
    ended = run_all({"config": ["queryloop", "--config", str(file), "config"]}, to_environ(Settings()), tmp_path)["config"]
    assert ended.code == 2
    assert f"{file}: unknown key kafka.partitons (did you mean partitions?)" in ended.text
    assert f"{file}: kafka.session_timeout_s = 0: must be a number from 1" in ended.text


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, dict[str, Ended], socket.socket]]:
    """Everything that listens, started on one port that a socket of the test's holds."""
    place = tmp_path_factory.mktemp("crowded")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        settings = Settings(
            data=DataSettings(dir=place / "data"),
            kafka=KafkaSettings(),
            worker=WorkerSettings(port=port),
        )
        environ = to_environ(settings) | {"QUERYLOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
        ended = run_all({"worker": ["streams"]}, environ, place)
        served = settings.model_copy(update={"worker": WorkerSettings(), "serving": ServingSettings(port=port)})
        environ = to_environ(served) | {"QUERYLOOP_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
        ended |= run_all({"serving": ["serving"]}, environ, place)
        ended |= run_all(
            {"broker": ["queryloop", "broker", "--port", str(port)], "up": ["queryloop", "up"]}, to_environ(settings), place
        )
        yield port, ended, taken


@pytest.mark.parametrize(
    ("name", "code", "setting"),
    [("worker", 1, "worker.port"), ("serving", 2, "serving.port"), ("broker", 3, "another port"), ("up", 3, "worker.port")],
)
def test_a_port_in_use_is_named_with_the_setting_to_change(
    crowded: tuple[int, dict[str, Ended], socket.socket], name: str, code: int, setting: str
) -> None:
    port, ended, taken = crowded
    assert ended[name].code == code
    assert f"{port}" in ended[name].text
    assert setting in ended[name].text
    assert "Traceback" not in ended[name].text
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        taken.accept()[0].close()
