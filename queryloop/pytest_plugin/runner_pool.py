"""The processes that run the workers of a run's tests, and its folder. Cheap to import: the first one starts at once."""

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
"""The order that ends a process."""


class Host:
    """A process that runs one worker after another (`queryloop.pytest_plugin.worker_runner`)."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        orders = folder / "orders"
        os.mkfifo(orders)
        command: list[str | Path] = [sys.executable, "-m", "queryloop.pytest_plugin.worker_runner", orders]
        self.child = Child("the test's worker", command, folder / "worker.log")
        # Open for reading too, so that neither opening nor writing waits for the other side.
        self._orders = os.fdopen(os.open(orders, os.O_RDWR), "w", encoding="utf-8")

    def order(self, what: dict[str, str] | str) -> None:
        """Give the environment of the next worker, or END, for when the one that runs has ended."""
        self._orders.write(json.dumps(what) + "\n")
        self._orders.flush()

    def stop(self) -> None:
        """End the process after the worker that runs, or for certain."""
        self.order(END)
        if self.child.sleep(STOP_S) is None:
            self.child.kill()
        self._orders.close()


class Hosts:
    """All hosts of a run, and its folder. Use it in a `with` block: leaving stops them and removes the folder."""

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="queryloop-test-")
        self.folder = Path(self._temporary.name)
        self._number = 0
        self._all: list[Host] = []
        self._free: list[Host] = []

    def find(self) -> Host:
        """Return a host that has no worker any more, or a new one."""
        while self._free:
            if (host := self._free.pop(0)).child.returncode is None:
                return host
        self._number += 1
        host = Host(self.folder / f"host-{self._number}")
        self._all.append(host)
        return host

    def free(self, host: Host) -> None:
        """Take a host back whose worker ends now."""
        self._free.append(host)

    def __enter__(self) -> Self:
        self.free(self.find())
        return self

    def stop(self) -> None:
        """End all of them, each after its worker."""
        while self._all:
            self._all.pop().stop()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self._temporary.cleanup()
