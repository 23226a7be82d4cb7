"""Connects a producer on a thread of its own, so that events reach the disk while no broker answers.

Connecting takes seconds when there is no broker, and the emitter's one thread has lines to write meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from streams.brokers.clients import KafkaProducer


class Connection(NamedTuple):
    """A connected producer, and the number of partitions of its topic."""

    producer: KafkaProducer
    partitions: int


class Connector:
    """Runs one `connect` at a time; `abort` closes a producer that was connected after `close`."""

    def __init__(self, connect: Callable[[], Connection], abort: Callable[[KafkaProducer], None]) -> None:
        self._connect = connect
        self._abort = abort
        self._lock = threading.Lock()
        self._connecting = self._closed = False
        self._result: Connection | Exception | None = None

    def poll(self) -> Connection | None:
        """Return the connection when there is one, else None; connect in the background. Raises what `connect` raised."""
        with self._lock:
            result, self._result = self._result, None
            if result is None and not self._connecting:
                self._connecting = True
                threading.Thread(target=self._run, name="emitter-connect", daemon=True).start()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Close the producer that was connected, also one that is connected later."""
        with self._lock:
            self._closed = True
            result, self._result = self._result, None
        if isinstance(result, Connection):
            self._abort(result.producer)

    def _run(self) -> None:
        result: Connection | Exception
        try:
            result = self._connect()
        except Exception as error:  # noqa: BLE001 - raised again by poll, on the thread that asked
            result = error
        with self._lock:
            self._connecting = False
            unwanted = self._closed
            self._result = None if unwanted else result
        if unwanted and isinstance(result, Connection):
            self._abort(result.producer)
