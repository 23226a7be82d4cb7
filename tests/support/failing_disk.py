"""A disk of the outbox that fails when a test says so."""

from __future__ import annotations

import os
import time

import pytest

from streams.emitter.outbox import Disk, Outbox


class FailingDisk:
    """Stands in for the disk of every outbox that is opened from now on; fails with these errno values while they are set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write_error = self.sync_error = 0
        self.syncs = 0
        monkeypatch.setattr(Outbox.__init__, "__defaults__", (time.time, Disk(self.write, os.ftruncate, self.fsync)))

    def write(self, file: int, data: bytes) -> int:
        if self.write_error:
            raise OSError(self.write_error, os.strerror(self.write_error))
        return os.write(file, data)

    def fsync(self, file: int) -> None:
        self.syncs += 1
        if self.sync_error:
            raise OSError(self.sync_error, os.strerror(self.sync_error))
        os.fsync(file)
