"""What each extra declares is all that it needs: every command's main path runs in an environment that has that extra alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).parent / "uv"
# Nothing of ours listens on these.
FREE_PORTS = {"QUERYLOOP_WORKER_PORT": "1", "QUERYLOOP_SERVING_PORT": "2", "QUERYLOOP_TIMETABLE_PORT": "3"}
EVENTS = [
    {"type": "impression", "event_id": "i1", "impression_id": "m1", "query": "lisbon", "items": ["lisbon weather"]},
    {"type": "click", "event_id": "c1", "impression_id": "m1", "query": "lisbon", "position": 0},
]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.full


def write_constraints(path: Path) -> Path:
    """Write the development lock without its hashes: a project's own folder has none."""
    lines = [line.removesuffix(" \\") for line in (ROOT / "requirements.lock").read_text().splitlines() if line[:1] != " "]
    path.write_text("\n".join(lines))
    return path


def make_environment(folder: Path, extra: str) -> Command:
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

    def run(*arguments: str, code: int = 0, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("QUERYLOOP_", "PYTHON"))}
        variables |= FREE_PORTS | {"QUERYLOOP_DATA_DIR": str(folder / "data")}
        done = subprocess.run(
            [environment / "bin" / arguments[0], *arguments[1:]],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        assert "No module named" not in done.stdout + done.stderr
        return done

    return run


def write_log(folder: Path) -> None:
    common = {"session_id": "s1", "ts": "2026-01-05T10:00:00Z"}
    (folder / "log.jsonl").write_text("".join(json.dumps(event | common) + "\n" for event in EVENTS))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("core")
    write_log(folder)
    return make_environment(folder, "")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("embedded")
    write_log(folder)
    return make_environment(folder, "embedded")


@pytest.fixture(scope="module")
def cpu(tmp_path_factory: pytest.TempPathFactory) -> Command:
    return make_environment(tmp_path_factory.mktemp("cpu"), "embedded,cpu")


@pytest.fixture(scope="module")
def testing(tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("test")
    (example,) = re.findall(r"```python\n(from queryloop.testing .*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)
    (folder / "test_it.py").write_text(example)
    return make_environment(folder, "embedded,test")


def test_without_an_extra_every_module_but_those_of_the_models_and_pytest_is_there(core: Command) -> None:
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


def test_without_an_extra_the_commands_that_need_none_work(core: Command) -> None:
    assert core("queryloop", "--version").stdout.startswith("queryloop ")
    assert "[kafka]" in core("queryloop", "config").stdout
    assert "lisbon weather" in core("queryloop", "replay", "log.jsonl", "--check").stdout
    for command in (["status"], ["windows", "--query", "lisbon"], ["lag"], ["delays"], ["verify"], ["quarantine", "list"]):
        core("queryloop", *command, code=3)
    core("queryloop", "run", "ctr", code=5)


def test_without_an_extra_what_needs_one_names_it(core: Command) -> None:
    done = core("queryloop", "replay", "log.jsonl", "--isolated", "--as-of", "2026-01-06", "--out", "counts", code=3)
    assert "pip install 'queryloop[embedded]'" in done.stderr
    assert "pip install 'queryloop[embedded]'" in core("queryloop", "up", "--broker", "embedded", code=3).stderr


def test_with_the_embedded_broker_a_log_is_counted(embedded: Command) -> None:
    embedded("queryloop", "replay", "log.jsonl", "--isolated", "--as-of", "2026-01-06", "--out", "counts")
    embedded("queryloop", "torture", "--events", "2000", "--kills", "1", "--broker", "embedded")


def test_with_the_test_extra_the_fixture_of_the_documentation_runs(testing: Command) -> None:
    assert "2 passed" in testing("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py").stdout


def test_with_the_models_extra_the_whole_loop_runs(cpu: Command) -> None:
    cpu("queryloop", "demo", "--quick", timeout=900)
