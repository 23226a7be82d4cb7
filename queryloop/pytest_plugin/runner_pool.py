"""The processes that run the workers of a test run, and its folder. Cheap to import, so that the first one starts at once."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from streams.runtime.processes import Child

STOP_S = 10.0
END = "end"
"""The line in a runner's pipe that ends its process."""


class WorkerRunner:
    """A process that runs one worker after another (`queryloop.pytest_plugin.worker_runner`)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        pipe = folder / "pipe"
        os.mkfifo(pipe)
        command: list[str | Path] = [sys.executable, "-m", "queryloop.pytest_plugin.worker_runner", pipe]
        self.child = Child("the test's worker", command, folder / "worker.log")
        # Open for reading too, so that neither opening nor writing waits for the other side.
        self._pipe = os.fdopen(os.open(pipe, os.O_RDWR), "w", encoding="utf-8")

    def send(self, what: dict[str, str] | str) -> None:
        """Write the environment of the next worker, or END, into the pipe; it is read when the worker that runs has ended."""
        self._pipe.write(json.dumps(what) + "\n")
        self._pipe.flush()

    def stop(self) -> None:
        """End the process after the worker that runs; kill it after STOP_S."""
        self.send(END)
        if self.child.sleep(STOP_S) is None:
            self.child.kill()
        self._pipe.close()


class RunnerPool:
    """All runners of a test run, and its folder. Use it in a `with` block: leaving stops them and removes the folder."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="queryloop-test-")
        self.folder = Path(self._temporary.name)
        self._number = 0
        self._all: list[WorkerRunner] = []
        self._free: list[WorkerRunner] = []

    def acquire(self) -> WorkerRunner:
        """Return a runner without a worker, or a new one."""
        while self._free:
            if (runner := self._free.pop(0)).child.returncode is None:
                return runner
        self._number += 1
        runner = WorkerRunner(self.folder / f"runner-{self._number}")
        self._all.append(runner)
        return runner

    def release(self, runner: WorkerRunner) -> None:
        """Take a runner back whose worker is ending."""
        self._free.append(runner)

    def __enter__(self) -> Self:
        self.release(self.acquire())
        return self

    def stop(self) -> None:
        """End every runner after its worker."""
        while self._all:
            self._all.pop().stop()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._temporary.cleanup()
