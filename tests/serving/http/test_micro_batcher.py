"""The micro-batcher: full batches under load, a deadline for each request, one bad batch hurts no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from serving.http.micro_batcher import Batcher, BusyError, DeadlineError
from serving.metrics import ServingMetrics

Double = Batcher[int, int]


class Work:
    """Doubles numbers; keeps the batches; waits for `gate` when it is closed; fails on negative numbers."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.started = threading.Event()
        self.gate.set()

    def __call__(self, numbers: Sequence[int]) -> Sequence[int]:
        self.batches.append(list(numbers))
        self.started.set()
        assert self.gate.wait(20)
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]


def run_with(
    scenario: Callable[[Double], Coroutine[Any, Any, None]], work: Work, *, wait_s: float = 0.02, queue_limit: int = 100
) -> ServingMetrics:
    metrics = ServingMetrics()

    async def run() -> None:
        batcher: Double = Batcher(work, metrics, max_batch=8, wait_s=wait_s, queue_limit=queue_limit)
        batcher.start()
        try:
            await asyncio.wait_for(scenario(batcher), 30)
        finally:
            work.gate.set()
            await batcher.stop()

    asyncio.run(run())
    return metrics


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 20)


def test_requests_share_batches_and_get_their_own_answers() -> None:
    work = Work()

    async def scenario(batcher: Double) -> None:
        assert await asyncio.gather(*(batcher.submit(number, 20) for number in range(20))) == [2 * number for number in range(20)]

    metrics = run_with(scenario, work)
    assert sorted(number for batch in work.batches for number in batch) == list(range(20))
    assert [len(batch) for batch in work.batches] == [8, 8, 4]
    assert metrics.registry.get_sample_value("queryloop_batch_size_count") == 3


def test_requests_during_a_batch_are_the_next_batch() -> None:
    work = Work()
    work.gate.clear()

    async def scenario(batcher: Double) -> None:
        first = asyncio.create_task(batcher.submit(0, 20))
        await until(work.started)
        more = [asyncio.create_task(batcher.submit(number, 20)) for number in range(1, 5)]
        await asyncio.sleep(0)
        work.gate.set()
        assert await asyncio.gather(first, *more) == [0, 2, 4, 6, 8]

    run_with(scenario, work, wait_s=0.0)
    assert work.batches == [[0], [1, 2, 3, 4]]


def test_a_late_answer_is_a_deadline_error_and_expired_requests_are_not_computed() -> None:
    work = Work()
    work.gate.clear()

    async def scenario(batcher: Double) -> None:
        first = asyncio.create_task(batcher.submit(0, 20))
        await until(work.started)
        with pytest.raises(DeadlineError, match=r"within 0\.01 s"):
            await batcher.submit(1, 0.01)
        second = asyncio.create_task(batcher.submit(2, 20))
        await asyncio.sleep(0)
        work.gate.set()
        assert await asyncio.gather(first, second) == [0, 4]

    metrics = run_with(scenario, work)
    assert work.batches == [[0], [2]]
    assert metrics.registry.get_sample_value("queryloop_expired_total") == 1


def test_a_full_queue_refuses_at_once() -> None:
    work = Work()
    work.gate.clear()

    async def scenario(batcher: Double) -> None:
        running = asyncio.create_task(batcher.submit(0, 20))
        await until(work.started)
        waiting = [asyncio.create_task(batcher.submit(number, 20)) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="2 requests wait already"):
            await batcher.submit(3, 20)
        work.gate.set()
        assert await asyncio.gather(running, *waiting) == [0, 2, 4]

    run_with(scenario, work, wait_s=0.0, queue_limit=2)


def test_an_error_belongs_to_its_batch_alone() -> None:
    work = Work()

    async def scenario(batcher: Double) -> None:
        answers = await asyncio.gather(*(batcher.submit(number, 20) for number in (1, -1)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [ValueError, ValueError]
        assert await batcher.submit(4, 20) == 8

    run_with(scenario, work)


def test_stopping_refuses_what_waits() -> None:
    work = Work()
    work.gate.clear()

    async def scenario(batcher: Double) -> None:
        running = asyncio.create_task(batcher.submit(0, 20))
        await until(work.started)
        waiting = asyncio.create_task(batcher.submit(1, 20))
        await asyncio.sleep(0)
        stopping = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        work.gate.set()
        await stopping
        for answer in await asyncio.gather(running, waiting, return_exceptions=True):
            assert isinstance(answer, BusyError)

    run_with(scenario, work)
