"""The connector: one attempt at a time, each result is returned once, errors reach the caller, no connection is left open."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from streams.emitter.connector import Connection, Connector


class SlowBroker:
    """Returns its result when the test sets `go`."""

    def __init__(self, result: Any) -> None:
        self.result = result
        self.connects = 0
        self.go = threading.Event()
        self.aborted: list[object] = []
        self.connector = Connector(self.connect, self.aborted.append)

    def connect(self) -> Connection:
        self.connects += 1
        assert self.go.wait(10)
        if isinstance(self.result, Exception):
            raise self.result
        return Connection(self.result, 3)

    def wait(self) -> Connection:
        deadline = time.monotonic() + 10
        while (found := self.connector.poll()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return found


def wait_until(ready: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not ready() and time.monotonic() < deadline:
        time.sleep(0.005)
    return ready()


def test_polling_never_waits_and_returns_a_connection_once() -> None:
    broker = SlowBroker(producer := SimpleNamespace())
    assert [broker.connector.poll() for _ in range(5)] == [None] * 5
    assert broker.connects == 1
    broker.go.set()
    assert broker.wait() == Connection(producer, 3)  # type: ignore[arg-type]
    assert broker.connector.poll() is None
    assert wait_until(lambda: broker.connects == 2)


def test_an_error_is_raised_by_poll_and_the_next_poll_connects_again() -> None:
    broker = SlowBroker(OSError("nobody there"))
    broker.go.set()
    with pytest.raises(OSError, match="nobody there"):
        broker.wait()
    broker.result = SimpleNamespace()
    assert broker.wait().partitions == 3
    assert broker.connects == 2


@pytest.mark.parametrize("late", [False, True])
def test_a_connection_made_after_closing_is_aborted(late: bool) -> None:
    broker = SlowBroker(producer := SimpleNamespace())
    if not late:
        broker.go.set()
    assert broker.connector.poll() is None
    if not late:
        assert wait_until(lambda: not broker.connector._connecting)
    broker.connector.close()
    broker.go.set()
    assert wait_until(lambda: broker.aborted == [producer])
