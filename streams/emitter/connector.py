"""Dialling: connecting a producer on a thread of its own, so that events reach the disk while no broker answers.

Connecting takes seconds where nobody is there, and the emitter's one thread has lines to write meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from streams.brokers.clients import KafkaProducer


class Link(NamedTuple):
    """A producer that is connected, and the number of partitions it found."""

    producer: KafkaProducer
    partitions: int


class Dialler:
    """Dials once at a time. `hang_up` gets a producer that nobody waits for any more."""

    def __init__(self, dial: Callable[[], Link], hang_up: Callable[[KafkaProducer], None]) -> None:
        self._dial = dial
        self._hang_up = hang_up
        self._lock = threading.Lock()
        self._dialling = self._closed = False
        self._answer: Link | Exception | None = None

    def poll(self) -> Link | None:
        """Return the connection once it is there, None until then; dial when nobody does. Raises what dialling raised."""
        with self._lock:
            answer, self._answer = self._answer, None
            if answer is None and not self._dialling:
                self._dialling = True
                threading.Thread(target=self._run, name="emitter-dial", daemon=True).start()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Wait for nobody any more."""
        with self._lock:
            self._closed = True
            answer, self._answer = self._answer, None
        if isinstance(answer, Link):
            self._hang_up(answer.producer)

    def _run(self) -> None:
        answer: Link | Exception
        try:
            answer = self._dial()
        except Exception as error:  # noqa: BLE001 - raised again by poll, on the thread that asked
            answer = error
        with self._lock:
            self._dialling = False
            unwanted = self._closed
            self._answer = None if unwanted else answer
        if unwanted and isinstance(answer, Link):
            self._hang_up(answer.producer)
