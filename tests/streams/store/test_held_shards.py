"""Held shards: each on its own thread, assigned and released with its partition, and no run of another log applied."""

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
from streams.worker.fetches import FetchedRun, to_offset_range
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


def run_scenario(scenario: Callable[[], Awaitable[None]]) -> None:
    async def begin() -> None:
        await asyncio.wait_for(scenario(), 30)

    asyncio.run(begin())


def run(partition: int, first: int, last: int, generation: int = 1) -> FetchedRun:
    records: list[tuple[int, bytes | None]] = [(at, query(f"e{at}", START + at)) for at in range(first, last)]
    return FetchedRun(partition, records, first, last, 1000, generation)


async def apply(shards: HeldShards, one: FetchedRun) -> int | None:
    applied = await shards.apply(to_offset_range([one]), decode_columns(one.records))
    return None if applied is None else applied.events


def test_a_shard_continues_at_its_last_offset(held: HeldShards, tmp_path: Path) -> None:
    async def scenario() -> None:
        assert await held.assign({0: 0, 1: 4}, "log", 1) == {0: 0, 1: 4}
        assert await apply(held, run(0, 0, 3)) == 3
        await held.release([0])
        assert sorted(held.totals()) == [1]
        assert await held.assign({0: 0, 1: 4}, "log", 2) == {0: 3, 1: 4}

    run_scenario(scenario)


def test_applied_events_are_written_once_they_are_old_enough_or_many(
    held: HeldShards, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "WRITE_EVENTS", 6)

    async def written(step: float, first: int, last: int) -> int | None:
        timer.now += step
        await apply(held, run(0, first, last))
        assert held.totals()[0].next_offset == last
        await held.maintain(0)
        return held.totals()[0].written_offset

    async def scenario() -> None:
        await held.assign({0: 0}, "log", 1)
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
        await held.maintain(0)
        assert held.totals()[0].written_offset == 16, "without another batch"
        await held.write(0)
        assert (sum(held.apply_timings.events.counts), held.apply_timings.events.total) == (9, 16)
        assert (sum(held.write_timings.events.counts), held.write_timings.events.total) == (4, 14), "the first batch wrote itself"

    run_scenario(scenario)


def test_a_read_that_writes_during_maintenance_does_no_harm(
    held: HeldShards, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Shard.write

    def write_while_a_read_ends(shard: Shard) -> None:
        write(shard)
        held._unwritten_since.clear()

    async def scenario() -> None:
        await held.assign({0: 0}, "log", 1)
        await apply(held, run(0, 0, 1))
        await apply(held, run(0, 1, 2))
        await held.maintain(0)
        timer.now += WRITE_EVERY_S
        monkeypatch.setattr(Shard, "write", write_while_a_read_ends)
        await held.maintain(0)
        assert held.totals()[0].written_offset == 2

    run_scenario(scenario)


def test_a_read_sees_what_was_applied_before_it(held: HeldShards) -> None:
    async def scenario() -> None:
        await held.assign({0: 0}, "log", 1)
        for first in range(3):
            await apply(held, run(0, first, first + 1))
            found = await held.readers.read([0, 5], lambda con: con.execute("SELECT count(*) FROM queries").fetchall()[0][0])
            assert found == {0: first + 1}
        await held.write(5)

    run_scenario(scenario)


def test_a_busy_shard_does_not_block_another(held: HeldShards) -> None:
    async def scenario() -> None:
        await held.assign({0: 0, 1: 0}, "log", 1)
        gate = threading.Event()
        busy = asyncio.ensure_future(held.call(0, lambda _: gate.wait(20)))
        assert await apply(held, run(1, 0, 2)) == 2
        assert not busy.done()
        gate.set()
        assert await busy

    run_scenario(scenario)


def test_a_run_from_before_the_seek_or_of_a_released_shard_is_not_applied(held: HeldShards) -> None:
    async def scenario() -> None:
        await held.assign({0: 0}, "log", 2)
        assert await apply(held, run(0, 0, 2, generation=1)) is None
        assert await apply(held, run(5, 0, 2, generation=2)) is None
        assert held.totals()[0].events == 0

    run_scenario(scenario)


def test_a_shard_that_cannot_be_opened_fails_the_assignment_and_the_others_are_held(held: HeldShards, tmp_path: Path) -> None:
    path = shard_path(tmp_path, 1)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no shard")

    async def scenario() -> None:
        with pytest.raises(StoreError, match="events-1"):
            await held.assign({0: 0, 1: 0, 2: 0}, "log", 1)
        assert sorted(held.totals()) == [0, 2]

    run_scenario(scenario)


def test_a_new_assignment_releases_the_other_shards(held: HeldShards, tmp_path: Path) -> None:
    async def scenario() -> None:
        await held.assign({0: 0, 1: 0}, "log", 1)
        await held.assign({1: 0}, "log", 2)
        Shard.open(shard_path(tmp_path, 0), RULES).close()
        assert sorted(held.totals()) == [1]

    run_scenario(scenario)


def test_only_one_shard_at_a_time_does_maintenance_that_is_not_urgent(held: HeldShards, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    began, done = threading.Event(), threading.Event()

    def maintain(shard: Shard, budget_s: float, urgent_only: bool) -> None:
        asked.append(urgent_only)
        if not urgent_only:
            began.set()
            assert done.wait(20)

    async def scenario() -> None:
        await held.assign({0: 0, 1: 0}, "log", 1)
        monkeypatch.setattr(Shard, "maintain", maintain)
        busy = asyncio.ensure_future(held.maintain(0))
        assert await asyncio.to_thread(began.wait, 20)
        assert await apply(held, run(1, 0, 1)) == 1
        await held.maintain(1)
        done.set()
        await busy
        assert asked == [False, True]

    run_scenario(scenario)
