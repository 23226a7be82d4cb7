"""The workers of a torture run: each a real `python -m streams`, killed, restarted at once, and timed until it counts again.

The time is from the process's start to the first /status in which a shard is past the offset at which the worker took it (the
log's `event=shard_taken` names it); /status is asked every 20 ms then, so a time is up to some 30 ms too long, never too short.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from queryloop.up.worker_process import WorkerProcess, read_status
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child
from streams.worker.settings import StreamsSettings

STATUS_S = 0.2
STATUS_TIMEOUT_S = 0.5
TAKEN = re.compile(r"event=shard_taken partition=(\d+) offset=(\d+) topic_id=(\S+)")


@dataclass
class Restart:
    """One start of a worker; `ready_s` is the time until it counted, None while it has not or when it was killed before."""

    worker: str
    why: str
    started: float
    ready_s: float | None = None
    again: bool = False

    @property
    def waits(self) -> bool:
        return self.ready_s is None and not self.again


@dataclass
class Worker:
    """One worker and its process. `poll` must be called often; it takes at most STATUS_TIMEOUT_S."""

    settings: StreamsSettings
    log: Path
    restarts: list[Restart] = field(default_factory=list)
    shards: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._read_from = 0
        self._polled = 0.0
        self.child: Child | None = None

    @property
    def name(self) -> str:
        return self.settings.worker.name

    @property
    def is_counting(self) -> bool:
        """Whether it has counted something since its last start."""
        return bool(self.restarts) and self.restarts[-1].ready_s is not None

    def start(self, why: str) -> None:
        """Start the process and its time."""
        self._read_from = self.log.stat().st_size if self.log.exists() else 0
        self.shards = {}
        self.restarts.append(Restart(self.name, why, time.monotonic()))
        self.child = Child(self.name, WorkerProcess.COMMAND, self.log, to_environ(self.settings))

    def kill(self) -> None:
        """Kill the process by SIGKILL."""
        self._running().kill()
        self.restarts[-1].again = self.restarts[-1].waits

    def stop(self, grace_s: float = 30.0) -> int:
        """Stop the process by SIGTERM; return the exit code, 0 where it was never started."""
        self.shards = {}
        return 0 if self.child is None else self.child.stop(grace_s)

    def ended(self) -> int | None:
        """Return the exit code of a process that ended by itself, else None."""
        return self._running().returncode

    def read_log(self) -> str:
        """Return its log since the last start."""
        with self.log.open("rb") as file:
            file.seek(self._read_from)
            return file.read().decode("utf-8", "replace")

    def poll(self) -> None:
        """Read its /status, at most once in STATUS_S unless it has not counted yet."""
        now = time.monotonic()
        waits = self.restarts[-1].waits
        if self.ended() is not None or (now - self._polled < STATUS_S and not waits):
            return
        taken = self._taken() if waits else {}
        if waits and not taken:
            return
        status = read_status(self.settings, STATUS_TIMEOUT_S)
        self._polled = time.monotonic()
        if status is None:
            return
        self.shards = {shard["partition"]: shard for shard in status["shards"]}
        if waits and any(_is_past(self.shards.get(number), *taken_at) for number, taken_at in taken.items()):
            self.restarts[-1].ready_s = self._polled - self.restarts[-1].started

    def _taken(self) -> dict[int, tuple[int, str]]:
        """Return the offset and topic id at which each partition was first taken since the last start."""
        found = [(int(number), (int(offset), topic_id)) for number, offset, topic_id in TAKEN.findall(self.read_log())]
        return dict(reversed(found))

    def _running(self) -> Child:
        if self.child is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.child


def _is_past(shard: Mapping[str, Any] | None, offset: int, topic_id: str) -> bool:
    return shard is not None and shard["topic_id"] == topic_id and (shard["next_offset"] or 0) > offset
