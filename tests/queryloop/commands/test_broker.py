"""`queryloop broker`: says how products reach it, and ends at SIGINT also where a script started it in the background."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path


def test_a_broker_in_the_background_of_a_script_ends_at_sigint(tmp_path: Path) -> None:
    environ = {**os.environ, "QUERYLOOP_DATA_DIR": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "queryloop", "broker", "--broker", "embedded", "--port", "0"]
    # A shell without job control starts `command &` with SIGINT ignored.
    script = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
    with subprocess.Popen(script, env=environ, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "stopped"
    assert any(line.startswith("export QUERYLOOP_KAFKA_BOOTSTRAP=") for line in lines)
    assert "Ctrl-C" in "".join(lines)


AT_ONCE = """
import builtins, os, signal, sys
from queryloop import cli
say = builtins.print
def say_and_interrupt(*words, **options):
    say(*words, **options)
    if "Ctrl-C" in str(words):
        os.kill(os.getpid(), signal.SIGINT)
builtins.print = say_and_interrupt
sys.exit(cli.main(["broker", "--broker", "embedded", "--port", "0"]))
"""


def test_a_sigint_right_after_the_address_is_shown_ends_it_cleanly(tmp_path: Path) -> None:
    environ = {**os.environ, "QUERYLOOP_DATA_DIR": str(tmp_path / "data")}
    done = subprocess.run([sys.executable, "-c", AT_ONCE], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "stopped"), done.stderr
