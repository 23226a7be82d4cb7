"""The micro-batcher: single requests are collected into batches for one worker thread, each with its own deadline.

While a batch is computed the next one fills up; only an idle process waits, for `wait_s`, for more requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.metrics import ServingMetrics

log = logging.getLogger(__name__)
_Request = TypeVar("_Request")
_Answer = TypeVar("_Answer")


class BusyError(RuntimeError):
    """The queue of waiting requests is full."""


class DeadlineError(RuntimeError):
    """The request's deadline passed before its answer was ready."""


@dataclass(slots=True)
class _Waiting(Generic[_Request, _Answer]):
    request: _Request
    answer: asyncio.Future[_Answer]
    deadline: float


class Batcher(Generic[_Request, _Answer]):
    """Runs `run(requests) -> answers` (as many, in order) on batches, one at a time. Belongs to one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[_Request]], Sequence[_Answer]],
        metrics: ServingMetrics,
        *,
        max_batch: int,
        wait_s: float,
        queue_limit: int,
    ) -> None:
        self._run = run
        self._metrics = metrics
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._queue: asyncio.Queue[_Waiting[_Request, _Answer]] = asyncio.Queue(queue_limit)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._task: asyncio.Task[None] | None = None
        self._open: list[_Waiting[_Request, _Answer]] = []

    def start(self) -> None:
        """Start to answer, in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._loop())

    async def stop(self) -> None:
        """Finish the running batch and refuse the requests that wait."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while not self._queue.empty():
            self._open.append(self._queue.get_nowait())
        for waiting in self._open:
            self._resolve(waiting, error=BusyError("the server is stopping"))
        await asyncio.to_thread(self._executor.shutdown)

    async def submit(self, request: _Request, deadline_s: float) -> _Answer:
        """Return the answer to one request. Raises BusyError, DeadlineError, or what `run` raised for its batch."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, loop.create_future(), loop.time() + deadline_s)
        try:
            self._queue.put_nowait(waiting)
        except asyncio.QueueFull:
            raise BusyError(f"{self._queue.qsize()} requests wait already") from None
        self._metrics.queue.set(self._queue.qsize())
        try:
            return await asyncio.wait_for(waiting.answer, deadline_s)
        except TimeoutError:
            self._metrics.expired.inc()
            raise DeadlineError(f"no answer within {deadline_s:g} s") from None

    async def _loop(self) -> None:
        while True:
            await self._gather()
            self._metrics.queue.set(self._queue.qsize())
            # A request whose deadline has passed was answered 504.
            if batch := [waiting for waiting in self._open if not waiting.answer.done()]:
                await self._answer(batch)

    async def _gather(self) -> None:
        """Collect the next batch into `_open`, where `stop` finds its requests."""
        self._open = batch = [await self._queue.get()]
        loop = asyncio.get_running_loop()
        until = loop.time() + self._wait_s
        while len(batch) < self._max_batch:
            try:
                batch.append(self._queue.get_nowait())
                continue
            except asyncio.QueueEmpty:
                left = until - loop.time()
            if left <= 0:
                break
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), left))
            except TimeoutError:
                break

    async def _answer(self, batch: Sequence[_Waiting[_Request, _Answer]]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answers = await loop.run_in_executor(self._executor, self._run, [waiting.request for waiting in batch])
        except Exception as error:
            log.error("event=batch_failed requests=%d error=%s", len(batch), type(error).__name__, exc_info=error)
            for waiting in batch:
                self._resolve(waiting, error=error)
            return
        self._metrics.batch_size.observe(len(batch))
        self._metrics.batch_seconds.observe(loop.time() - began)
        for waiting, answer in zip(batch, answers, strict=True):
            self._resolve(waiting, answer=answer)

    def _resolve(
        self, waiting: _Waiting[_Request, _Answer], *, answer: _Answer | None = None, error: Exception | None = None
    ) -> None:
        if waiting.answer.done():
            return
        if error is not None:
            waiting.answer.set_exception(error)
        else:
            waiting.answer.set_result(answer)  # type: ignore[arg-type]
