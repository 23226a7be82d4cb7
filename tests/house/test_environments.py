"""What each extra declares is all that it needs: every command's main path runs in an environment that has that extra alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streams.runtime.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).parent / "uv"
# Nothing of ours listens on these.
FREE_PORTS = {"QUERYLOOP_WORKER_PORT": "1", "QUERYLOOP_SERVING_PORT": "2", "QUERYLOOP_TIMETABLE_PORT": "3"}
INSTALL = "pip install 'queryloop[cpu]' (or gpu)"
EVENTS = [
    {"type": "impression", "event_id": "i1", "impression_id": "m1", "query": "lisbon", "items": ["lisbon weather"]},
    {"type": "click", "event_id": "c1", "impression_id": "m1", "query": "lisbon", "position": 0},
]

pytestmark = pytest.mark.full


def write_constraints(path: Path) -> Path:
    """Write the development lock without its hashes: a project's own folder has none."""
    lines = [line.removesuffix(" \\") for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] != " "]
    path.write_text("\n".join(lines))
    return path


@dataclass(frozen=True)
class Environment:
    """An environment with one extra alone, in which commands run in `folder`, which has their data folder too."""

    folder: Path

    def variables(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("QUERYLOOP_", "PYTHON"))}
        return {**others, **FREE_PORTS, "QUERYLOOP_DATA_DIR": str(self.folder / "data"), "PYTHONUNBUFFERED": "1"}

    def command(self, *arguments: str) -> list[str]:
        return [str(self.folder / "venv" / "bin" / arguments[0]), *arguments[1:]]

    def __call__(self, *arguments: str, code: int = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which must have this code and no traceback."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        assert "No module named" not in done.stdout + done.stderr
        return done

    @contextmanager
    def up(self) -> Iterator[str]:
        """Run `queryloop up` on ports of its own; yields the line that says it is ready. It must stop cleanly."""
        ports = {f"QUERYLOOP_{section}_PORT": str(free_port()) for section in ("WORKER", "SERVING", "TIMETABLE", "KAFKA")}
        variables = {**self.variables(), **ports}
        with subprocess.Popen(
            self.command("queryloop", "up"), cwd=self.folder, env=variables, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            try:
                yield next((line for line in process.stdout if line.startswith("ready in ")), "it ended before it was ready")
            finally:
                process.send_signal(signal.SIGINT)
                process.communicate(timeout=60)
        assert process.returncode == 0


def make_environment(folder: Path, extra: str) -> Environment:
    """Install the project with one extra, from a copy of its files, and return a way to run its commands."""
    source = folder / "source"
    rooms = ("streams", "index", "serving", "trainers", "queryloop")
    for room in rooms:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    environment = folder / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    wanted = f"{source}[{extra}]" if extra else str(source)
    constraint = write_constraints(folder / "constraints.txt")
    install = [UV, "pip", "install", "--quiet", "--python", environment / "bin" / "python", "--constraint", constraint, wanted]
    subprocess.run(install, check=True)
    return Environment(folder)


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON of an answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def read_rows(environment: Environment) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(environment("queryloop", "windows", "--query", "lisbon", "--json").stdout)["rows"]
    return rows


def write_log(folder: Path) -> None:
    common = {"session_id": "s1", "ts": "2026-01-05T10:00:00Z"}
    (folder / "log.jsonl").write_text("".join(json.dumps(event | common) + "\n" for event in EVENTS))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("core")
    write_log(folder)
    return make_environment(folder, "")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("embedded")
    write_log(folder)
    return make_environment(folder, "embedded")


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment(tmp_path_factory.mktemp("cpu"), "embedded,cpu")


@pytest.fixture(scope="module")
def testing(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("test")
    (example,) = re.findall(r"```python\n(from queryloop.testing .*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
    (folder / "test_it.py").write_text(example)
    return make_environment(folder, "embedded,test")


def test_without_an_extra_every_module_but_those_of_the_models_and_pytest_is_there(core: Environment) -> None:
    probe = (
        "import importlib, pkgutil, streams, index, serving, trainers, queryloop\n"
        "for room in (streams, index, serving, trainers, queryloop):\n"
        "    for module in pkgutil.walk_packages(room.__path__, room.__name__ + '.'):\n"
        "        if not module.name.endswith('__main__'):\n"
        "            try:\n"
        "                importlib.import_module(module.name)\n"
        "            except ImportError as error:\n"
        "                print(module.name)\n"
    )
    missing = core("python", "-c", probe).stdout.split()
    assert [name for name in missing if not name.startswith(("serving.policy.engines.", "serving.predictor."))] == [
        "queryloop.testing"
    ]


def test_without_an_extra_the_commands_that_need_none_work(core: Environment) -> None:
    assert core("queryloop", "--version").stdout.startswith("queryloop ")
    assert "[kafka]" in core("queryloop", "config").stdout
    assert "lisbon weather" in core("queryloop", "replay", "log.jsonl", "--check").stdout
    for command in (["status"], ["windows", "--query", "lisbon"], ["lag"], ["delays"], ["verify"], ["quarantine", "list"]):
        core("queryloop", *command, code=3)
    core("queryloop", "run", "ctr", code=5)


def test_without_an_extra_what_needs_one_names_it(core: Environment) -> None:
    done = core("queryloop", "replay", "log.jsonl", "--isolated", "--as-of", "2026-01-06", "--out", "counts", code=3)
    assert "pip install 'queryloop[embedded]'" in done.stderr
    assert "pip install 'queryloop[embedded]'" in core("queryloop", "up", "--broker", "embedded", code=3).stderr


def test_with_the_embedded_broker_a_log_is_counted(embedded: Environment) -> None:
    embedded("queryloop", "replay", "log.jsonl", "--isolated", "--as-of", "2026-01-06", "--out", "counts")
    embedded("queryloop", "torture", "--events", "2000", "--kills", "1", "--broker", "embedded")


def test_with_the_embedded_broker_alone_up_counts_events_and_says_what_lists_need(embedded: Environment) -> None:
    shutil.rmtree(embedded.folder / "data", ignore_errors=True)
    with embedded.up() as ready:
        assert "lists are refused (503)" in ready and INSTALL in ready
        serving = json.loads((embedded.folder / "data" / "run" / "up.json").read_text())["serving"]
        events = [event | {"session_id": "s1", "ts": time.time()} for event in EVENTS]
        assert post(f"{serving}/v1/events", {"events": events}) == (202, {"accepted": 2, "rejected": []})
        deadline = time.monotonic() + 30
        while [row["clicks"] for row in read_rows(embedded)] != [1]:
            assert time.monotonic() < deadline, "the click is not counted"
        status, refusal = post(f"{serving}/v1/recommend", {"task": "suggest", "query": "lisbon", "session_id": "s1"})
        assert status == 503 and INSTALL in refusal["error"]
        for command in (["lag"], ["delays"], ["verify"], ["quarantine", "list"]):
            embedded("queryloop", *command)
        assert INSTALL in embedded("queryloop", "status", code=3).stdout
        assert INSTALL in embedded("queryloop", "run", "policy", code=1).stdout


def test_with_the_test_extra_the_fixture_of_the_documentation_runs(testing: Environment) -> None:
    assert "2 passed" in testing("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py").stdout


def test_with_the_models_extra_the_whole_loop_runs(cpu: Environment) -> None:
    cpu("queryloop", "demo", "--quick", timeout=900)
