"""Held shards: each on its thread, taken and given up as a whole, and nothing applied that was fetched for another log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from streams.events.batch_decoder import decode_columns
from streams.store import held_shards as shards
from streams.store.held_shards import WRITE_EVERY_S, HeldShards, shard_path
from streams.store.shard import CountingRules, Shard, StoreError
from streams.worker.fetches import Run, cover
from tests.support.logs import START, query

RULES = CountingRules(retention_days=0)


@dataclass
class Timer:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def held(tmp_path: Path, timer: Timer) -> Iterator[HeldShards]:
    shards = HeldShards(tmp_path, RULES, clock=lambda: START, timer=timer)
    yield shards
    shards.close()


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def begin() -> None:
        await asyncio.wait_for(story(), 30)

    asyncio.run(begin())


def run(partition: int, first: int, last: int, generation: int = 1) -> Run:
    records: list[tuple[int, bytes | None]] = [(at, query(f"e{at}", START + at)) for at in range(first, last)]
    return Run(partition, records, first, last, 1000, generation)


async def apply(shards: HeldShards, one: Run) -> int | None:
    applied = await shards.apply(cover([one]), decode_columns(one.records))
    return None if applied is None else applied.events


def test_a_shard_goes_on_where_it_was_left(held: HeldShards, tmp_path: Path) -> None:
    async def story() -> None:
        assert await held.take({0: 0, 1: 4}, "log", 1) == {0: 0, 1: 4}
        assert await apply(held, run(0, 0, 3)) == 3
        await held.release([0])
        assert sorted(held.totals()) == [1]
        assert await held.take({0: 0, 1: 4}, "log", 2) == {0: 3, 1: 4}

    play(story)


def test_what_is_applied_is_written_once_it_is_old_enough_or_much(
    held: HeldShards, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "WRITE_EVENTS", 6)

    async def written(step: float, first: int, last: int) -> int | None:
        timer.now += step
        await apply(held, run(0, first, last))
        assert held.totals()[0].next_offset == last
        await held.tend(0)
        return held.totals()[0].written_offset

    async def story() -> None:
        await held.take({0: 0}, "log", 1)
        assert await written(0, 0, 2) == 2, "the first batch of a day marks the day in the file"
        assert await written(0, 2, 4) == 2
        assert await written(WRITE_EVERY_S * 0.9, 4, 6) == 2
        assert await written(WRITE_EVERY_S * 0.1, 6, 7) == 7
        assert await written(0, 7, 9) == 7
        assert await written(0, 9, 13) == 13, "six events wait"
        assert await written(0, 13, 14) == 13
        assert await written(WRITE_EVERY_S, 14, 15) == 15
        assert await written(0, 15, 16) == 15
        timer.now += WRITE_EVERY_S
        await held.tend(0)
        assert held.totals()[0].written_offset == 16, "without another batch"
        await held.write(0)
        assert (sum(held.applies.events.counts), held.applies.events.total) == (9, 16)
        assert (sum(held.writes.events.counts), held.writes.events.total) == (4, 14), "the first batch wrote itself"

    play(story)


def test_a_read_that_ends_while_its_shard_is_tended_disturbs_nothing(
    held: HeldShards, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Shard.write

    def write_while_a_read_ends(shard: Shard) -> None:
        write(shard)
        held._unwritten_since.clear()

    async def story() -> None:
        await held.take({0: 0}, "log", 1)
        await apply(held, run(0, 0, 1))
        await apply(held, run(0, 1, 2))
        await held.tend(0)
        timer.now += WRITE_EVERY_S
        monkeypatch.setattr(Shard, "write", write_while_a_read_ends)
        await held.tend(0)
        assert held.totals()[0].written_offset == 2

    play(story)


def test_a_read_sees_what_was_applied_before_it(held: HeldShards) -> None:
    async def story() -> None:
        await held.take({0: 0}, "log", 1)
        for first in range(3):
            await apply(held, run(0, first, first + 1))
            found = await held.readers.read([0, 5], lambda con: con.execute("SELECT count(*) FROM queries").fetchall()[0][0])
            assert found == {0: first + 1}
        await held.write(5)

    play(story)


def test_a_shard_that_works_does_not_hold_up_another(held: HeldShards) -> None:
    async def story() -> None:
        await held.take({0: 0, 1: 0}, "log", 1)
        gate = threading.Event()
        busy = asyncio.ensure_future(held.call(0, lambda _: gate.wait(20)))
        assert await apply(held, run(1, 0, 2)) == 2
        assert not busy.done()
        gate.set()
        assert await busy

    play(story)


def test_a_run_of_an_earlier_seek_or_of_a_shard_that_left_is_not_applied(held: HeldShards) -> None:
    async def story() -> None:
        await held.take({0: 0}, "log", 2)
        assert await apply(held, run(0, 0, 2, generation=1)) is None
        assert await apply(held, run(5, 0, 2, generation=2)) is None
        assert held.totals()[0].events == 0

    play(story)


def test_a_shard_that_another_process_would_hold_fails_the_taking_and_the_others_are_held(
    held: HeldShards, tmp_path: Path
) -> None:
    path = shard_path(tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no shard")

    async def story() -> None:
        with pytest.raises(StoreError, match="events-1"):
            await held.take({0: 0, 1: 0, 2: 0}, "log", 1)
        assert sorted(held.totals()) == [0, 2]

    play(story)


def test_taking_another_set_gives_up_the_rest(held: HeldShards, tmp_path: Path) -> None:
    async def story() -> None:
        await held.take({0: 0, 1: 0}, "log", 1)
        await held.take({1: 0}, "log", 2)
        Shard.open(shard_path(tmp_path, 0), RULES).close()
        assert sorted(held.totals()) == [1]

    play(story)


def test_while_one_shard_does_what_can_wait_another_does_not(held: HeldShards, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    began, done = threading.Event(), threading.Event()

    def tend(shard: Shard, budget_s: float, urgent_only: bool) -> None:
        asked.append(urgent_only)
        if not urgent_only:
            began.set()
            assert done.wait(20)

    async def story() -> None:
        await held.take({0: 0, 1: 0}, "log", 1)
        monkeypatch.setattr(Shard, "tend", tend)
        busy = asyncio.ensure_future(held.tend(0))
        assert await asyncio.to_thread(began.wait, 20)
        assert await apply(held, run(1, 0, 1)) == 1
        await held.tend(1)
        done.set()
        await busy
        assert asked == [False, True]

    play(story)
