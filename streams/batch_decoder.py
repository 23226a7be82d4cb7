"""Decoding for the pipeline: on a thread of its own, and large batches in a process beside.

Decoding is Python, and holds the interpreter's lock, which the thread that counts needs between any two statements of DuckDB. So
under load both would run at half their speed. The process is started with the first large batch, and used once it answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO

from streams.columns import Columns
from streams.decoder_process import Records, pack_records, read_frame, unpack_columns, write_frame
from streams.decoding import decode_columns
from streams.events import EventSettings
from streams.processes import KEEP_BUFFERS, guard

log = logging.getLogger(__name__)

APART_BYTES = 256 * 1024
"""Smaller batches are decoded here: sending them would take longer than the lock is worth."""


class BatchDecoder:
    """Decodes one batch after another. `decode` is called in an event loop."""

    def __init__(self, limits: EventSettings, apart: bool = True) -> None:
        self._limits = limits
        self._apart = apart
        self._child: DecoderChild | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")

    async def decode(self, records: Records, size: int) -> Columns:
        """Return the columns of (offset, value) records of `size` bytes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._decode, records, size)

    def close(self) -> None:
        """End the thread after what it has in hand, and the process."""
        self._thread.submit(self._drop)
        self._thread.shutdown(cancel_futures=False)

    def _decode(self, records: Records, size: int) -> Columns:
        if not self._apart or size < APART_BYTES:
            return decode_columns(records, self._limits)
        if self._child is None:
            self._child = DecoderChild(self._limits)
        try:
            if self._child.answers():
                return self._child.decode(records)
        except (OSError, EOFError) as error:
            log.error("event=decoder_lost pid=%d error=%r action=%r", self._child.pid, error, "started again")
            self._drop()
        return decode_columns(records, self._limits)

    def _drop(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None


class DecoderChild:
    """The process beside. It dies with the thread that started it."""

    def __init__(self, limits: EventSettings) -> None:
        command: Sequence[str] = [*guard(), sys.executable, "-m", "streams.decoder_process"]
        environ = {**os.environ, **KEEP_BUFFERS}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, start_new_session=True
        )
        self._ready = False
        write_frame(self._requests, limits.model_dump_json().encode())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def _requests(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def answers(self) -> bool:
        """Whether it has started; does not wait. Raises EOFError when it has ended."""
        if not self._ready and select.select([self._answers], [], [], 0)[0]:
            read_frame(self._answers)
            self._ready = True
        return self._ready

    def decode(self, records: Records) -> Columns:
        """Return the columns of records. Raises OSError or EOFError when the process has ended."""
        write_frame(self._requests, pack_records(records))
        return unpack_columns(read_frame(self._answers))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        with suppress(OSError):  # what was not written yet goes nowhere
            self._requests.close()
        self._answers.close()
        self._process.wait()
