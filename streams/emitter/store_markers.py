"""Answers to callers who wait until their events are safe: on disk, or acknowledged by Kafka.

One fsync serves all who wait at that moment. While the disk fails, Kafka's acknowledgement answers; when there is no connection
to Kafka either, the answer is no, at once, so that a caller can tell its own client to come back later.
"""

from __future__ import annotations

from collections.abc import Iterable

from streams.emitter.counters import StoreMarker
from streams.emitter.send_buffer import SendBuffer


class StoreMarkers:
    """The markers that the sender has reached. Used by the sender's thread only; `sync` says whether a store waits for fsync."""

    def __init__(self, buffer: SendBuffer, *, sync: bool) -> None:
        self._buffer = buffer
        self._sync = sync
        self._waiting: list[StoreMarker] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, marker: StoreMarker) -> None:
        """Take a marker; all lines before it are in the send buffer."""
        marker.end = self._buffer.next
        self._waiting.append(marker)

    def settle(self, low_watermark: int, *, can_wait: bool) -> None:
        """Answer the markers whose answer is known; all of them unless they `can_wait` for acknowledgements.

        All lines before `low_watermark` have their outcome.
        """
        if not self._waiting:
            return
        if self._sync:
            self._buffer.sync()
        waiting, self._waiting = self._waiting, []
        for marker in waiting:
            marker.safe = self._buffer.unstored_end(marker.end) <= low_watermark
            if marker.safe or not can_wait:
                marker.done.set()
            else:
                self._waiting.append(marker)


def refuse(markers: Iterable[StoreMarker]) -> None:
    """Answer markers whose lines cannot be stored now."""
    for marker in markers:
        marker.done.set()
