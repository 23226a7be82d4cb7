"""README's first five minutes, as a newcomer copies them: a list and its click are counted without a model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from queryloop.settings import Settings
from queryloop.up.stack import Stack
from streams.runtime.environment import to_environ
from streams.runtime.processes import free_port

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
COUNTED_S = 60.0


def read_example() -> tuple[str, str]:
    """Return the shell that sends, and the command that reads the counts."""
    section = README.partition("### The first five minutes")[2]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert block is not None
    sent, _, read = block[1].rstrip().rpartition("\n")
    return sent, read


def run_shell(text: str, environ: dict[str, str], folder: Path) -> str:
    found = subprocess.run(["bash", "-c", text], env=environ, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return found.stdout + found.stderr


def read_counts(command: str, environ: dict[str, str], folder: Path) -> object:
    """Return impressions and clicks of each item, or what the command said while the worker cannot answer yet."""
    said = run_shell(f"{command.partition('#')[0]} --json", environ, folder)
    try:
        rows = json.loads(said)["rows"]
    except (ValueError, KeyError):
        return said
    return {row["item"]: (row["impressions"], row["clicks"]) for row in rows}


def test_a_list_and_its_click_are_counted_without_a_model_however_often_they_are_sent(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {
            "data": {"dir": tmp_path / "data"},
            "serving": {"port": free_port(), "device": "cpu", "drain_s": 0},
            "worker": {"port": free_port()},
        }
    )
    send, read = read_example()
    commands = Path(sys.executable).parent
    with Stack(settings, rooms=("streams", "serving")) as stack:
        environ = {
            **os.environ,
            **to_environ(settings),
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        }
        here = send.replace("localhost:8080", stack.urls.serving.removeprefix("http://"))
        for _ in range(2):
            assert '{"accepted":2,"rejected":[]}' in run_shell(here, environ, tmp_path)
        deadline = time.monotonic() + COUNTED_S
        while (counts := read_counts(read, environ, tmp_path)) != {"lisbon weather": (1, 0), "lisbon museums": (1, 1)}:
            assert time.monotonic() < deadline, counts
            time.sleep(0.5)
