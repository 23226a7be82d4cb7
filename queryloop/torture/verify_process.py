"""`queryloop verify` as a process of its own, beside the running workers, as a user would run it."""

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
"""Differing keys in the report; `queryloop verify` on the data folder, which is kept, lists all of them."""


def run_verify(settings: StreamsSettings, *, log_was_lost: bool) -> tuple[bool, dict[str, Any]]:
    """Return whether every count is equal and all could be compared, and verify's JSON. Raises TortureError.

    Where the log was lost and all of it sent again, not all can be compared: the shards have read more lines than the log has.
    """
    command = [sys.executable, "-m", "queryloop", "verify", "--json"]
    done = subprocess.run(command, env=to_environ(settings), capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode not in (Exit.DONE, Exit.FAILED, Exit.INCOMPLETE) or not done.stdout:
        raise TortureError(f"queryloop verify ended with code {done.returncode}: {(done.stderr or done.stdout)[-2000:]}")
    verdict: dict[str, Any] = json.loads(done.stdout)
    if "error" in verdict:
        raise TortureError(f"queryloop verify ended with code {done.returncode}: {verdict['error']}")
    enough = (Exit.DONE, Exit.INCOMPLETE) if log_was_lost else (Exit.DONE,)
    return done.returncode in enough, {**verdict, "exit": done.returncode, "differences": verdict["differences"][:SHOWN]}
