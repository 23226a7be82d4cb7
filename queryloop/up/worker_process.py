"""A worker as a child process, started with given settings and asked over HTTP: for isolated replays and for tests."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streams.api.client import HttpError, get_json
from streams.runtime.data_folder import find_data_folder
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child, ProcessError
from streams.worker.settings import StreamsSettings

log = logging.getLogger(__name__)

RESTARTS = 3


class WorkerProcess:
    """`python -m streams` with exactly these settings, its output in `log_file`; restarted when it is killed.

    Use it in a `with` block: leaving stops it.
    """

    COMMAND = (sys.executable, "-m", "streams")

    def __init__(self, settings: StreamsSettings, log_file: Path) -> None:
        self._settings = settings
        self._log_file = log_file
        self._restarts = 0
        self.child = self._start()

    def keep_alive(self) -> None:
        """Start it again when a signal ended it. Raises ProcessError when it ended by itself, or was killed too often."""
        code = self.child.returncode
        if code is None:
            return
        if code >= 0 or self._restarts == RESTARTS:
            raise ProcessError(f"the worker ended with code {code}; its log ends:\n{self.child.tail()}")
        self._restarts += 1
        log.warning("event=worker_restarted signal=%d restarts=%d", -code, self._restarts)
        self.child = self._start()

    def stop(self) -> None:
        """Stop it by SIGTERM. Raises ProcessError when it ends with another code than 0."""
        if (code := self.child.stop(grace_s=30.0)) != 0:
            raise ProcessError(f"the worker ended with code {code}; its log ends:\n{self.child.tail()}")

    def _start(self) -> Child:
        return Child("worker", self.COMMAND, self._log_file, to_environ(self._settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.child.stop(grace_s=5.0)


def read_status(settings: StreamsSettings, timeout_s: float = 5.0) -> dict[str, Any] | None:
    """Return the /status of a worker on the data folder of its settings, None while it does not answer."""
    try:
        folder = find_data_folder(settings.data.dir)
        return get_json(f"{settings.worker.local_url}/status", settings.worker.key, timeout_s=timeout_s, folder=folder)
    except HttpError:
        return None


def read_progress(settings: StreamsSettings) -> tuple[dict[int, int], int]:
    """Return the next offset of each shard that a worker holds, and the events it has applied; empty while it does not answer."""
    shards = (read_status(settings) or {"shards": []})["shards"]
    offsets = {shard["partition"]: shard["next_offset"] or 0 for shard in shards}
    return offsets, sum(shard["events"] for shard in shards)
