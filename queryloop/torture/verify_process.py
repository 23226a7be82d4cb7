"""`queryloop verify` as a process of its own, beside the workers that still run: the way anybody would ask for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from queryloop.exits import Exit
from queryloop.torture.harness import TortureError
from streams.runtime.environment import to_environ
from streams.worker.settings import StreamsSettings

LIMIT_S = 1800.0
SHOWN = 20
"""Differing keys that go into the report; all of them are one `queryloop verify` away, in the data folder that is kept."""


def run_verify(settings: StreamsSettings, *, log_was_lost: bool) -> tuple[bool, dict[str, Any]]:
    """Return whether every count is equal and all could be compared, and what verify says of it. Raises TortureError.

    Where the log was lost and all of it sent again, verify rightly doubts: the shards have read more lines than the log has.
    """
    command = [sys.executable, "-m", "queryloop", "verify", "--json"]
    done = subprocess.run(command, env=to_environ(settings), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode not in (Exit.DONE, Exit.FAILED, Exit.INCOMPLETE) or not done.stdout:
        raise TortureError(f"queryloop verify ended with code {done.returncode}: {done.stderr[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout)
    enough = (Exit.DONE, Exit.INCOMPLETE) if log_was_lost else (Exit.DONE,)
    return done.returncode in enough, {**said, "exit": done.returncode, "differences": said["differences"][:SHOWN]}
