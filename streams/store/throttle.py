"""Limits the maintenance of all shards of a worker: one shard at a time, and a tenth of one core in all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

REST_FACTOR = 9.0
"""Maintenance pauses for so many times as long as it took: it gets a tenth of one core, and few batches meet a slice."""


class Throttle:
    """Gives turns to the shards of a worker, each of which calls from its own thread.

    While one shard has its turn, and during the pause after it, the others get none: four shards of a busy topic would start
    their compaction in the same second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._free_at = -math.inf

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Yield whether the caller gets a turn now; it lasts until the context is left."""
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
                    self._free_at = ended + REST_FACTOR * (ended - began)
