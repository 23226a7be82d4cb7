"""The counters of an emitter, and the markers by which a caller waits for the lines before them."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """Events so far: emitted + recovered = delivered + failed + buffered. Events that were `refused` are in none of them.

    recovered: left in the outbox by an earlier process; on_disk: those of `buffered` that are in the outbox; dropped: those of
    `failed` that a full outbox dropped; resent: sent a second time because the topic was made anew (`topic_changes` times).
    """

    emitted: int = 0
    delivered: int = 0
    failed: int = 0
    buffered: int = 0
    refused: int = 0
    recovered: int = 0
    on_disk: int = 0
    dropped: int = 0
    resent: int = 0
    topic_changes: int = 0


@dataclass(slots=True)
class SendCounters:
    """The live counters, guarded by the emitter's lock.

    `queued` events are in its queue, `in_memory` events in the send buffer or on their way to the broker.
    """

    emitted: int = 0
    recovered: int = 0
    delivered: int = 0
    failed: int = 0
    refused: int = 0
    dropped: int = 0
    resent: int = 0
    topic_changes: int = 0
    queued: int = 0
    queued_bytes: int = 0
    in_memory: int = 0
    memory_bytes: int = 0
    resends_pending: int = 0
    """Outcomes that are still expected of events that are sent a second time."""
    unstored: int = 0
    """Events that left the queue and have no outcome yet, and are not in the outbox for certain."""
    disk_error: str = ""
    """Why the outbox cannot be written or read now, "" while it can."""
    outbox_free_bytes: int = 0
    """Bytes that the outbox can take before undelivered events would have to be dropped."""

    @property
    def buffered(self) -> int:
        return self.emitted + self.recovered - self.delivered - self.failed

    def leave_queue(self, count: int, size: int) -> None:
        """Count events that left the queue."""
        self.queued -= count
        self.queued_bytes -= size

    def enter_memory(self, count: int, size: int) -> None:
        """Count events that entered memory; negative numbers for events that left it."""
        self.in_memory += count
        self.memory_bytes += size

    def count_resent(self, count: int) -> int:
        """Return how many of `count` outcomes are of events sent a second time, and count these as resent."""
        resent = min(count, self.resends_pending)
        self.resends_pending -= resent
        self.resent += resent
        return resent

    def snapshot(self, *, has_outbox: bool) -> Counters:
        """Return the counters as they are now."""
        on_disk = max(0, self.buffered - self.queued - self.unstored) if has_outbox else 0
        return Counters(
            emitted=self.emitted,
            delivered=self.delivered,
            failed=self.failed,
            buffered=self.buffered,
            refused=self.refused,
            recovered=self.recovered,
            on_disk=on_disk,
            dropped=self.dropped,
            resent=self.resent,
            topic_changes=self.topic_changes,
        )


class FlushMarker:
    """A marker in the queue: done when every line before it has its outcome. `end` is the number of the line after it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.end = 0
        self.sent = False


class StoreMarker:
    """A marker in the queue: done when it is known whether every line before it is safe from a kill of this process.

    `safe` is true when each is in the outbox or acknowledged by Kafka; `end` is the number of the line after it.
    """

    def __init__(self) -> None:
        self.done = threading.Event()
        self.end = 0
        self.safe = False


Marker = FlushMarker | StoreMarker
