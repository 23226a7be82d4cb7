"""A probe of the disk's latency: durable writes of one block, again and again, and how long each took.

A shard counts nothing while it is written, so a stalled disk shows in the latency, and a shared disk stalls without our doing.
The same block is overwritten, so that no other file's data has to be written with it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from benchmarks.probes.probe import Probe

BLOCK = b"\0" * 4096
EVERY_S = 0.05


class DiskProbe(Probe):
    """Writes to `file`; `waits_s` are the seconds of each write."""

    def __init__(self, file: Path, every_s: float = EVERY_S) -> None:
        super().__init__(every_s)
        self.waits_s: list[float] = []
        self._file = file
        self._handle = os.open(file, os.O_CREAT | os.O_WRONLY)

    def probe(self) -> None:
        """Write the block and wait until it is on disk."""
        began = time.perf_counter()
        os.pwrite(self._handle, BLOCK, 0)
        os.fdatasync(self._handle)
        self.waits_s.append(time.perf_counter() - began)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        os.close(self._handle)
        self._file.unlink()
