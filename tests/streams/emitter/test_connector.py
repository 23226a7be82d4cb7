"""Dialling: one at a time, the answer comes once, errors reach the one who asks, and nobody is left on the line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from streams.emitter.connector import Dialler, Link


class Exchange:
    """Answers when it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.dialled = 0
        self.go = threading.Event()
        self.hung_up: list[object] = []
        self.dialler = Dialler(self.dial, self.hung_up.append)

    def dial(self) -> Link:
        self.dialled += 1
        assert self.go.wait(10)
        if isinstance(self.answer, Exception):
            raise self.answer
        return Link(self.answer, 3)

    def wait(self) -> Link:
        deadline = time.monotonic() + 10
        while (found := self.dialler.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return found


def settled(ready: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.005)
    return ready()


def test_polling_never_waits_and_the_answer_comes_once() -> None:
    exchange = Exchange(producer := SimpleNamespace())
    assert [exchange.dialler.poll() for _ in range(5)] == [None] * 5
    assert exchange.dialled == 1
    exchange.go.set()
    assert exchange.wait() == Link(producer, 3)  # type: ignore[arg-type]
    assert exchange.dialler.poll() is None
    assert settled(lambda: exchange.dialled == 2)


def test_an_error_is_raised_where_it_is_asked_for_and_the_next_poll_dials_again() -> None:
    exchange = Exchange(OSError("nobody there"))
    exchange.go.set()
    with pytest.raises(OSError, match="nobody there"):
        exchange.wait()
    exchange.answer = SimpleNamespace()
    assert exchange.wait().partitions == 3
    assert exchange.dialled == 2


@pytest.mark.parametrize("late", [False, True])
def test_an_answer_that_nobody_waits_for_is_hung_up(late: bool) -> None:
    exchange = Exchange(producer := SimpleNamespace())
    if not late:
        exchange.go.set()
    assert exchange.dialler.poll() is None
    if not late:
        assert settled(lambda: not exchange.dialler._dialling)
    exchange.dialler.close()
    exchange.go.set()
    assert settled(lambda: exchange.hung_up == [producer])
