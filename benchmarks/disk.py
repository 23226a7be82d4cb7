"""What a disk does to whoever waits for it: durable writes of one block, all the while, and how long each took.

A worker's counts are visible once they are durable, so a disk that stands still shows in its latency, and one that is shared
stands still by itself. The block is written over and over, so that no other file's data has to be written with it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

BLOCK = b"\0" * 4096
EVERY_S = 0.05


class DiskProbe:
    """Writes to `file` in a thread of its own within a `with` block; `waits_s` are the seconds of each write."""

    def __init__(self, file: Path, every_s: float = EVERY_S) -> None:
        self.waits_s: list[float] = []
        self._file = file
        self._every_s = every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="disk-probe")

    def _write(self) -> None:
        handle = os.open(self._file, os.O_CREAT | os.O_WRONLY)
        try:
            while True:
                began = time.perf_counter()
                os.pwrite(handle, BLOCK, 0)
                os.fdatasync(handle)
                self.waits_s.append(time.perf_counter() - began)
                if self._over.wait(self._every_s):
                    return
        finally:
            os.close(handle)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._file.unlink()
