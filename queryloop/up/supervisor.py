"""One room's process, kept running: started, watched, started again after a pause that grows while it keeps failing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from streams.api.client import HttpError, get
from streams.runtime.processes import Child
from trainers.jobs.processes import ENVIRON

STEADY_S = 60.0
MAX_PAUSE_S = 30.0
Say = Callable[[str], None]
Start = Callable[["Room"], Child]


@dataclass(frozen=True)
class Room:
    """What a room's process needs: its name (a package), environment, log file, and how one sees that it is ready."""

    name: str
    environ: dict[str, str]
    log: Path
    ready: Callable[[Child], bool]
    timeout_s: float = 60.0
    grace_s: float = 30.0


def start_room(room: Room) -> Child:
    """`python -m <room>` in its own session, printing to its log."""
    return Child(room.name, [sys.executable, "-m", room.name], room.log, room.environ)


def pause_after(failures: int) -> float:
    """Seconds until the next start after that many failures in a row: 1, 2, 4 … 30."""
    return min(MAX_PAUSE_S, 2.0 ** (failures - 1))


class Keeper:
    """Keeps one room's process. `tend` is called several times a second with a monotonic time; it never waits."""

    def __init__(self, room: Room, say: Say, start: Start = start_room) -> None:
        self.room = room
        self.restarts = 0
        self.child: Child | None = None
        self._say = say
        self._start = start
        self._failures = 0
        self._started = 0.0
        self._due: float | None = None

    def start(self, now: float) -> Child:
        """Start the process; whether it is ready is another question."""
        self._due = None
        self._started = now
        self.child = self._start(self.room)
        return self.child

    def wait_ready(self) -> None:
        """Raises ProcessError, with the end of its log, when it ends early or is not ready in time."""
        child = self.child
        if child is not None:
            child.wait_until(lambda: self.room.ready(child), self.room.timeout_s, "ready", poll_s=0.1)

    def tend(self, now: float) -> None:
        """Start a process that ended, once its pause is over; one that ran for a minute has no failures any more."""
        if self._due is not None:
            if now >= self._due:
                self.start(now)
                self.restarts += 1
        elif self.child is not None and self.child.returncode is not None:
            self._failures = 1 if now - self._started > STEADY_S else self._failures + 1
            pause = pause_after(self._failures)
            self._due = now + pause
            self._say(
                f"{self.room.name} ended with code {self.child.returncode}, starts again in {pause:g} s; log: {self.room.log}"
            )

    def stop(self) -> None:
        """SIGTERM, and SIGKILL after the grace."""
        self._due = None
        if self.child is not None:
            self.child.stop(self.room.grace_s)


def answers_http(url: str, timeout_s: float = 2.0) -> bool:
    """Whether a GET there answers 200."""
    try:
        get(url, None, timeout_s=timeout_s)
    except HttpError:
        return False
    return True


def room_environ(environ: dict[str, str], threads: int) -> dict[str, str]:
    """What every child needs before torch is imported in it, where the user has not set it."""
    return {**ENVIRON, "OMP_NUM_THREADS": str(threads), **environ}
