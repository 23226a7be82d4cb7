"""Reads while shards count: whole transactions only, bounded in number, and interrupted when a shard is released."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from streams.store import readers
from streams.store.readers import ReaderClosed, ReadersBusy, ShardReader, ShardReaders
from streams.store.shard import CountingRules, Shard
from tests.support.logs import START, feed, query

COUNT = "SELECT count(*) FROM queries"
ENDLESS = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range = b.range + 1"


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


def count(con: duckdb.DuckDBPyConnection) -> int:
    return int(con.execute(COUNT).fetchall()[0][0])


def test_a_read_sees_one_snapshot_while_the_shard_counts(shard: Shard) -> None:
    feed(shard, [query("a", START)])
    reader = ShardReader(shard)

    def twice(con: duckdb.DuckDBPyConnection) -> tuple[int, int]:
        before = count(con)
        feed(shard, [query("b", START + 1)], start=1)
        return before, count(con)

    assert reader.read(twice) == (1, 1)
    assert reader.read(count) == 2
    reader.close()


def test_an_error_in_a_read_leaves_the_reader_usable(shard: Shard) -> None:
    reader = ShardReader(shard)
    with pytest.raises(duckdb.CatalogException):
        reader.read(lambda con: con.execute("SELECT * FROM nothing"))
    assert reader.read(count) == 0
    reader.close()


def test_a_read_without_memory_while_the_buffer_pool_shrinks_is_tried_again(shard: Shard) -> None:
    reader, asked = ShardReader(shard), list[int]()

    def read(con: duckdb.DuckDBPyConnection, failing: int) -> int:
        asked.append(count(con))
        if len(asked) <= failing:
            raise duckdb.OutOfMemoryException("failed to allocate data")
        return asked[-1]

    assert reader.read(lambda con: read(con, 1)) == 0
    assert asked == [0, 0]
    asked.clear()
    with pytest.raises(duckdb.OutOfMemoryException):
        reader.read(lambda con: read(con, 2))
    assert asked == [0, 0]
    assert reader.read(count) == 0
    reader.close()


def test_releasing_a_shard_interrupts_its_read_and_frees_its_file(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules())
    reader = ShardReader(shard)
    started = threading.Event()
    outcome: list[type[BaseException]] = []

    def endless(con: duckdb.DuckDBPyConnection) -> None:
        started.set()
        con.execute(ENDLESS).fetchall()

    def run() -> None:
        try:
            reader.read(endless)
        except ReaderClosed as error:
            outcome.append(type(error))

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    reader.close()
    thread.join()
    shard.close()
    assert outcome == [ReaderClosed]
    Shard.open(tmp_path / "shard.duckdb", CountingRules()).close()
    with pytest.raises(ReaderClosed):
        reader.read(count)


async def write_nothing(_: int) -> None:
    """For a shard that writes each batch when it applies it."""


def test_a_shard_writes_what_it_has_applied_before_a_read(shard: Shard) -> None:
    written: list[int] = []

    async def write(partition: int) -> None:
        written.append(partition)
        shard.write()

    async def scenario() -> None:
        held = ShardReaders(write)
        held.add(3, shard)
        for number in range(2):
            feed(shard, [query(f"e{number}", START)], start=number, write=False)
            assert await held.read({1, 3}, count, fresh=False) == {3: 1}
            assert await held.read({1, 3}, count) == {3: number + 1}
        await held.read_shard(3, lambda one: one.totals().events)
        held.remove(3)
        held.close()

    asyncio.run(scenario())
    assert written == [3, 3, 3]


def test_only_held_shards_answer_and_too_many_reads_are_refused(shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        held = ShardReaders(write_nothing)
        held.add(3, shard)
        assert await held.read({1, 3}, count) == {3: 0}
        assert await held.read_shard(3, lambda one: one.totals().events) == 0
        assert await held.read_shard(1, lambda one: one.totals().events) is None
        monkeypatch.setattr(readers, "MAX_QUEUED", 0)
        with pytest.raises(ReadersBusy):
            await held.read({3}, count)
        held.remove(3)
        assert await held.read({3}, count) == {}
        held.close()

    asyncio.run(scenario())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has no priority of its own")
def test_nice_lowers_the_priority_of_the_reading_threads_only(shard: Shard) -> None:
    def priority(_: object = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def scenario() -> None:
        own = priority()
        for nice in (0, 3):
            held = ShardReaders(write_nothing, nice=nice)
            held.add(0, shard)
            assert await held.read({0}, priority) == {0: own + nice}
            assert priority() == own
            held.remove(0)
            held.close()

    asyncio.run(scenario())
