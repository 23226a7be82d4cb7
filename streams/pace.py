"""The pace of upkeep: what can wait gets a share of a worker's time, so that no event waits long for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

REST = 9.0
"""Upkeep rests so many times as long as it took: it gets a tenth of one core, and few batches meet a slice."""


class Pace:
    """One for all shards of a worker, each of which asks from its own thread.

    While one of them uses its turn, and until it has rested, there is none for the others: four shards of a busy topic come to
    their compaction in the same second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._free_at = -math.inf

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Give whether there is a turn now. Whoever got it has it for as long as this is open."""
        began = self._clock()
        with self._lock:
            is_free = began >= self._free_at
            if is_free:
                self._free_at = math.inf
        try:
            yield is_free
        finally:
            if is_free:
                ended = self._clock()
                with self._lock:
                    self._free_at = ended + REST * (ended - began)
