"""Reads beside counting: each held shard has a cursor of its own, used on threads that counting does not share.

A cursor sees whole transactions only (DuckDB's MVCC), so it never sees half of a batch. What was applied before a read was asked
for is written first, after the batch in hand, so a read sees all that counts. A shard's file lock is free only when its cursor
is closed too: a release interrupts the read in hand and waits for its end.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

import duckdb

from streams.store.shard import Shard

T = TypeVar("T")
Write = Callable[[int], Awaitable[None]]

THREADS = 2
MAX_WAITING = 64
INTERRUPT_EVERY_S = 0.05


class ReadersBusy(RuntimeError):
    """Too many reads wait already: ask again later."""


class ReaderClosed(RuntimeError):
    """The shard moves away."""


class ShardReader:
    """Reads one shard, one read at a time, each in a transaction of its own."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self._con = shard.reader()
        self._lock = threading.Lock()
        self._closed = False

    def read(self, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        """Return what `function`, which may be called twice, reads from one snapshot. Raises ReaderClosed if the shard moves."""
        return self._read_again(partial(self._read_snapshot, function))

    def _read_again(self, read: Callable[[], T]) -> T:
        """Read, and once more where the shard's pool was cut back at the very moment at which the read wanted memory."""
        with self._lock, self.shard.reading():
            if self._closed:
                raise ReaderClosed
            try:
                return read()
            except duckdb.OutOfMemoryException:
                return read()

    def _read_snapshot(self, function: Callable[[duckdb.DuckDBPyConnection], T]) -> T:
        self._con.execute("BEGIN TRANSACTION READ ONLY")
        try:
            return function(self._con)
        except Exception as error:
            if self._closed:  # interrupted, whatever DuckDB or Arrow make of that
                raise ReaderClosed from error
            raise
        finally:
            with suppress(duckdb.TransactionException):  # an error inside may have ended it
                self._con.execute("ROLLBACK")

    def read_whole(self, function: Callable[[Shard], T]) -> T:
        """Return what `function`, called twice perhaps, reads with cursors of its own, while this reader keeps the shard open."""
        return self._read_again(partial(function, self.shard))

    def close(self) -> None:
        """Interrupt the read in hand and close the cursor."""
        self._closed = True
        while not self._lock.acquire(timeout=INTERRUPT_EVERY_S):
            self._con.interrupt()
        try:
            self._con.close()
        finally:
            self._lock.release()


class ShardReaders:
    """The readers of all held shards. `add` and `remove` are called where shards are opened and closed.

    `write` is called with a partition before each read, to write what its shard has applied. With `nice` their threads give way
    to the others, on Linux: the higher, the more. Each thread keeps some of the memory that its largest read took.
    """

    def __init__(self, write: Write, nice: int = 0, threads: int = THREADS) -> None:
        self._write = write
        self._readers: dict[int, ShardReader] = {}
        self._waiting = 0
        self._threads = ThreadPoolExecutor(threads, "reads", initializer=_give_way, initargs=(nice,))

    def add(self, partition: int, shard: Shard) -> None:
        """Open a reader beside a shard that was taken."""
        self._readers[partition] = ShardReader(shard)

    def remove(self, partition: int) -> None:
        """Close a shard's reader, after what it reads now."""
        if (reader := self._readers.pop(partition, None)) is not None:
            reader.close()

    async def read(
        self, partitions: Iterable[int], function: Callable[[duckdb.DuckDBPyConnection], T], fresh: bool = True
    ) -> dict[int, T]:
        """Return what `function` reads from each of these shards that is held here; not the last second's where not `fresh`.

        Raises ReadersBusy.
        """
        held = {partition: reader for partition in partitions if (reader := self._readers.get(partition)) is not None}
        reads = {partition: partial(reader.read, function) for partition, reader in held.items()}
        found = await asyncio.gather(*(self._submit(read, partition if fresh else None) for partition, read in reads.items()))
        return {partition: part for partition, part in zip(held, found, strict=True) if part is not None}

    async def read_whole(self, partition: int, function: Callable[[Shard], T]) -> T | None:
        """Return what `function` reads from a shard through cursors of its own, None when it is not held. Raises ReadersBusy."""
        reader = self._readers.get(partition)
        return None if reader is None else await self._submit(partial(reader.read_whole, function), partition)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    async def _submit(self, read: Callable[[], T], fresh: int | None) -> T | None:
        """Read on a thread, after what the shard of the partition `fresh` has applied is written."""
        if self._waiting >= MAX_WAITING:
            raise ReadersBusy(f"{MAX_WAITING} reads wait already")
        self._waiting += 1
        try:
            if fresh is not None:
                await self._write(fresh)
            return await asyncio.get_running_loop().run_in_executor(self._threads, read)
        except ReaderClosed:
            return None
        finally:
            self._waiting -= 1


def _give_way(nice: int) -> None:
    """Lower the priority of the calling thread; elsewhere than on Linux it would be that of the whole process."""
    if nice and sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + nice)
