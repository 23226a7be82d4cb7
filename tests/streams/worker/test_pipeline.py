"""The pipeline: order within a partition, batches that grow while the shards are busy, bounded memory, nothing after an error."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable

import pytest

from streams.events.columns import Columns
from streams.events.schema import DEFAULT_LIMITS
from streams.store.offset_range import OffsetRange
from streams.worker import pipeline
from streams.worker.fetches import FetchedRun
from streams.worker.pipeline import Pipeline
from tests.support.logs import START, query


class Shards:
    """Shards whose applies wait for the test; each apply is recorded as (partition, first, next, events)."""

    def __init__(self) -> None:
        self.applied: list[tuple[int, int, int, int]] = []
        self.asked = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.busy: dict[int, asyncio.Event] = {}
        self.maintaining: dict[int, asyncio.Event] = {}
        self.error: Exception | None = None

    async def apply(self, offset_range: OffsetRange, columns: Columns) -> None:
        self.asked += 1
        await self.gate.wait()
        if (gate := self.busy.get(offset_range.partition)) is not None:
            await gate.wait()
        if self.error is not None:
            raise self.error
        self.applied.append((offset_range.partition, offset_range.first_offset, offset_range.next_offset, len(columns)))

    async def maintain(self, partition: int) -> None:
        if (gate := self.maintaining.get(partition)) is not None:
            await gate.wait()
        if self.error is not None:
            raise self.error


def run(first: int, last: int, partition: int = 0, generation: int = 0) -> FetchedRun:
    records: list[tuple[int, bytes | None]] = [(offset, query(f"e{offset}", START + offset)) for offset in range(first, last)]
    return FetchedRun(partition, records, first, last, 1000, generation)


Scenario = Callable[[Pipeline, Shards, list[BaseException]], Awaitable[None]]


def run_scenario(scenario: Scenario, batching_delay_s: float = 0.0) -> None:
    async def begin() -> None:
        shards, failures = Shards(), list[BaseException]()

        async def on_error(error: BaseException) -> None:
            failures.append(error)

        made = Pipeline(shards, DEFAULT_LIMITS, on_error, batching_delay_s)  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(scenario(made, shards, failures), 20)
        finally:
            await made.close()

    asyncio.run(begin())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def test_an_idle_pipeline_applies_a_small_run_at_once() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        await made.put(run(0, 2))
        await until(lambda: len(shards.applied) == 1)
        assert shards.applied == [(0, 0, 2, 2)]
        assert made.buffered_bytes == 0

    run_scenario(scenario)


def test_runs_queued_meanwhile_become_one_batch_per_partition_oldest_first() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        shards.gate.clear()
        for one in (run(0, 1), run(1, 2)):
            await made.put(one)
            await until(lambda: made.queued_runs == 0)
        for one in (run(5, 6, 1), run(2, 4), run(4, 5), run(6, 8, 1)):
            await made.put(one)
        assert made.queued_runs == 4
        shards.gate.set()
        await until(lambda: len(shards.applied) == 4)
        assert shards.applied == [(0, 0, 1, 1), (0, 1, 2, 1), (1, 5, 8, 3), (0, 2, 5, 3)]

    run_scenario(scenario)


def test_values_are_released_once_they_are_decoded() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        shards.gate.clear()
        value, other = query("e0", START), query("e1", START)
        owners = sys.getrefcount(value)
        await made.put(FetchedRun(0, [(0, value), (1, other)], 0, 2, 1000))
        await until(lambda: shards.asked == 1)
        await until(lambda: sys.getrefcount(value) == owners)
        assert made.buffered_bytes == len(value) + len(other)
        shards.gate.set()
        await until(lambda: made.buffered_bytes == 0)

    run_scenario(scenario)


def test_after_a_batch_the_next_one_is_delayed_until_enough_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "FULL_BATCH_BYTES", 3 * run(0, 1).size)

    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        for one in (run(0, 1), run(0, 1, partition=1)):
            await made.put(one)
        await until(lambda: len(shards.applied) == 2)
        for one in (run(1, 2), run(1, 2, partition=1), run(2, 3)):
            await made.put(one)
        await asyncio.sleep(0.02)
        assert len(shards.applied) == 2
        await made.put(run(3, 4))
        await until(lambda: len(shards.applied) == 3)
        assert shards.applied[2] == (0, 1, 4, 3)

    run_scenario(scenario, batching_delay_s=3600.0)


def test_the_batching_delay_grows_with_the_number_of_busy_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    lingers: list[float] = []

    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda delay, *_: lingers.append(delay))
        for partition in range(12):
            made._start_batch(partition)

    run_scenario(scenario, batching_delay_s=100.0)
    assert [delay for delay in lingers if delay >= 100] == [100.0] * 4 + [25.0 * number for number in range(5, 13)]


def test_delayed_runs_are_applied_after_the_delay() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        for first in range(3):
            await made.put(run(first, first + 1))
            await until(lambda: made.buffered_bytes == 0)
        assert [applied[1] for applied in shards.applied] == [0, 1, 2]

    run_scenario(scenario, batching_delay_s=0.05)


def test_runs_that_do_not_follow_each_other_are_never_one_batch() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        shards.gate.clear()
        for one in (run(0, 1), run(1, 2), run(4, 5), run(5, 6, generation=1)):
            await made.put(one)
        shards.gate.set()
        await until(lambda: made.buffered_bytes == 0)
        assert [(first, end) for _, first, end, _ in shards.applied][-2:] == [(4, 5), (5, 6)]

    run_scenario(scenario)


def test_batches_and_the_buffer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    size = run(0, 1).size
    monkeypatch.setattr(pipeline, "BATCH_BYTES", 2 * size)
    monkeypatch.setattr(pipeline, "MAX_BUFFERED_BYTES", 3 * size)

    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        shards.gate.clear()
        for number in range(3):
            await made.put(run(number, number + 1))
        more = asyncio.create_task(made.put(run(3, 4)))
        await asyncio.sleep(0.02)
        assert not more.done()
        assert made.buffered_bytes == 3 * size
        shards.gate.set()
        await more
        await until(lambda: made.buffered_bytes == 0)
        assert max(events for *_, events in shards.applied) <= 2
        assert sum(events for *_, events in shards.applied) == 4

    run_scenario(scenario)


def test_after_an_error_nothing_is_applied_and_put_does_not_wait() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        shards.error = OSError("disk full")
        await made.put(run(0, 1))
        await until(lambda: bool(failures))
        shards.error = None
        await made.put(run(1, 2))
        await asyncio.sleep(0.02)
        assert [str(error) for error in failures] == ["disk full"]
        assert shards.applied == []

    run_scenario(scenario)


def test_an_error_in_decoding_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Columns:
        raise ValueError("cannot decode")

    monkeypatch.setattr("streams.worker.pipeline.decode_columns", broken)

    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        await made.put(run(0, 1))
        await until(lambda: bool(failures))
        assert [str(error) for error in failures] == ["cannot decode"]
        assert shards.applied == []

    run_scenario(scenario)


def test_a_shard_in_maintenance_blocks_no_other_and_takes_one_more_batch() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        shards.maintaining[0] = asyncio.Event()
        for offset in range(3):
            await made.put(run(offset, offset + 1))
            await until(lambda number=offset: len(shards.applied) == min(number + 1, 2))
        assert made.queued_runs == 1
        for partition in (1, 2, 3):
            await made.put(run(0, 1, partition))
        await until(lambda: len(shards.applied) == 5)
        shards.maintaining[0].set()
        await until(lambda: len(shards.applied) == 6)
        assert shards.applied[-1] == (0, 2, 3, 1)

    run_scenario(scenario)


def test_an_error_in_maintenance_is_a_failure_too() -> None:
    async def scenario(made: Pipeline, shards: Shards, failures: list[BaseException]) -> None:
        shards.maintaining[0] = asyncio.Event()
        await made.put(run(0, 1))
        await until(lambda: len(shards.applied) == 1)
        shards.error = OSError("disk full")
        shards.maintaining[0].set()
        await until(lambda: len(failures) == 1)
        await made.put(run(1, 2))
        assert len(shards.applied) == 1

    run_scenario(scenario)


def test_a_busy_shard_does_not_block_the_others() -> None:
    async def scenario(made: Pipeline, shards: Shards, _: list[BaseException]) -> None:
        shards.busy[0] = asyncio.Event()
        await made.put(run(0, 1, partition=0))
        for first in range(1, 6):
            await made.put(run(first, first + 1, partition=0))
            await made.put(run(first, first + 1, partition=1))
        await until(lambda: sum(partition == 1 for partition, *_ in shards.applied) and shards.applied[-1][2] == 6)
        assert {partition for partition, *_ in shards.applied} == {1}
        shards.busy[0].set()
        await until(lambda: made.buffered_bytes == 0)
        of_zero = [(first, end) for partition, first, end, _ in shards.applied if partition == 0]
        assert [first for first, _ in of_zero] == [0, *(end for _, end in of_zero[:-1])]
        assert of_zero[-1][1] == 6

    run_scenario(scenario)


def test_with_more_busy_partitions_than_slots_each_has_one_batch_in_flight() -> None:
    async def scenario(made: Pipeline, shards: Shards, _: list[BaseException]) -> None:
        shards.busy[0] = asyncio.Event()
        shards.maintaining = {1: asyncio.Event(), 2: asyncio.Event()}
        for partition in range(3):
            await made.put(run(0, 1, partition))
        await until(lambda: len(shards.applied) == 2)
        for first in range(1, 4):
            await made.put(run(first, first + 1))
        await asyncio.sleep(0.02)
        assert made.queued_runs == 3, "its second batch would only wait for the first one, in the free slot"
        await made.put(run(0, 1, 3))
        await until(lambda: len(shards.applied) == 3)
        shards.busy[0].set()
        await until(lambda: len(shards.applied) == 5)
        assert shards.applied[2:] == [(3, 0, 1, 1), (0, 0, 1, 1), (0, 1, 4, 3)]

    run_scenario(scenario)
