"""The base of probes: something is done at intervals beside a measurement, in a thread."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self


class Probe:
    """Calls `probe` every `every_s` seconds within a `with` block, once at least."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def probe(self) -> None:
        """Do one probe."""
        raise NotImplementedError

    def _run(self) -> None:
        while True:
            self.probe()
            if self._over.wait(self._every_s):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
