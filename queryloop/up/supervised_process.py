"""One room's process, kept running: restarted when it ends, after a pause that grows while it keeps failing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streams.api.client import HttpError, get
from streams.runtime.processes import Child
from trainers.jobs.processes import ENVIRON

UNREADABLE = 65
"""The worker's exit code when the log holds records that it cannot read: a new start would end in the same way."""
STEADY_S = 60.0
MAX_PAUSE_S = 30.0
PrintLine = Callable[[str], None]
Start = Callable[["Room"], Child]


@dataclass(frozen=True)
class Room:
    """What it takes to run a room: its package name, environment, log file, and the test whether it is ready."""

    name: str
    environ: dict[str, str]
    log: Path
    ready: Callable[[Child], bool]
    timeout_s: float = 60.0
    grace_s: float = 30.0


def start_room(room: Room) -> Child:
    """Start `python -m <room>` in its own session, printing to its log."""
    return Child(room.name, [sys.executable, "-m", room.name], room.log, room.environ)


def pause_after(failures: int) -> float:
    """Return the seconds until the next start after so many failures in a row: 1, 2, 4 … 30."""
    return min(MAX_PAUSE_S, 2.0 ** (failures - 1))


class Supervisor:
    """Keeps one room's process running. `check` must be called several times a second with a monotonic time; it never waits."""

    def __init__(self, room: Room, print_line: PrintLine, start: Start = start_room) -> None:
        self.room = room
        self.restarts = 0
        self.child: Child | None = None
        self._print_line = print_line
        self._start = start
        self._failures = 0
        self._started = 0.0
        self._due: float | None = None
        self._given_up = False

    def start(self, now: float) -> Child:
        """Start the process without waiting until it is ready."""
        self._due = None
        self._started = now
        self.child = self._start(self.room)
        return self.child

    def wait_ready(self) -> None:
        """Wait until the room is ready. Raises ProcessError with the end of its log when it ends or is not ready in time."""
        child = self.child
        if child is not None:
            child.wait_until(lambda: self.room.ready(child), self.room.timeout_s, "ready", poll_s=0.1)

    def check(self, now: float) -> None:
        """Restart a process that ended once its pause is over; a run of over a minute resets the number of failures.

        One that ended with UNREADABLE is not restarted, and that is said once.
        """
        if self._due is not None:
            if now >= self._due:
                self.start(now)
                self.restarts += 1
        elif self.child is None or self.child.returncode is None or self._given_up:
            return
        elif self.child.returncode == UNREADABLE:
            self._given_up = True
            self._print_line(f"{self._describe_end(self.child)}; it is not started again; log: {self.room.log}")
        else:
            self._failures = 1 if now - self._started > STEADY_S else self._failures + 1
            pause = pause_after(self._failures)
            self._due = now + pause
            self._print_line(f"{self._describe_end(self.child)}; it starts again in {pause:g} s; log: {self.room.log}")

    def _describe_end(self, child: Child) -> str:
        """Return how the process ended, with the reason that it logged last where no signal killed it."""
        code = child.returncode or 0
        if code < 0:
            return f"{self.room.name} was killed by signal {-code}"
        reason = child.last_line()
        return f"{self.room.name} ended with code {code}" + (f": {reason}" if reason else "")

    def stop(self) -> None:
        """End the process by SIGTERM, and by SIGKILL after the grace period."""
        self._due = None
        if self.child is not None:
            self.child.stop(self.room.grace_s)


def answers_http(url: str, timeout_s: float = 2.0) -> bool:
    """Return whether a GET there is answered with 200."""
    try:
        get(url, None, timeout_s=timeout_s)
    except HttpError:
        return False
    return True


def room_environ(environ: dict[str, str], threads: int) -> dict[str, str]:
    """Return a child's environment with defaults that must be set before torch is imported in it."""
    return {**ENVIRON, "OMP_NUM_THREADS": str(threads), **environ}
