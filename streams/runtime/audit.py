"""`audit.jsonl` in the data folder: who changed what is kept or which release answers, and when. Lines are only ever appended."""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

AUDIT = "audit.jsonl"


@dataclass(frozen=True)
class Actor:
    """Who acts: a user as `name@host`, or a training job with the number of its run."""

    by: str
    run: int | None = None


_ACTOR: ContextVar[Actor | None] = ContextVar("actor", default=None)


@contextmanager
def acting(actor: Actor) -> Iterator[None]:
    """Let what is done in the block be recorded as done by `actor` instead of this process's user."""
    token = _ACTOR.set(actor)
    try:
        yield
    finally:
        _ACTOR.reset(token)


def find_actor() -> Actor:
    """Return who acts here: the one of `acting`, else the user of this process."""
    return _ACTOR.get() or Actor(name_user())


def name_user() -> str:
    """Return `user@host`; a user without a name, as in many containers, by its number."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def append_audit(data_dir: Path, action: str, what: dict[str, Any], clock: Callable[[], float] = time.time) -> None:
    """Append one line with the time; it survives a loss of power from then on. Raises OSError."""
    ts = datetime.fromtimestamp(clock(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with (data_dir / AUDIT).open("ab") as audit:  # one write: appends of several processes do not mix
        audit.write(msgspec.json.encode({"ts": ts, "action": action, **what}) + b"\n")
        audit.flush()
        os.fsync(audit.fileno())


def read_audit(data_dir: Path, *actions: str) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of these actions, oldest first, and how many lines cannot be read (one that was cut by a crash)."""
    path, found, broken = data_dir / AUDIT, list[dict[str, Any]](), 0
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = msgspec.json.decode(line, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError):
            broken += 1
            continue
        if entry.get("action") in actions:
            found.append(entry)
    return found, broken
