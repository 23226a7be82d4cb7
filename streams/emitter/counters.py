"""What the emitter counts, and the marks that wait in its queue."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass(frozen=True)
class Counters:
    """Events so far: emitted + recovered = delivered + failed + buffered. `refused` were turned away and are in none of them.

    recovered: left behind by an earlier process; on_disk: the buffered ones that are in the outbox; dropped: the failed ones that
    a full outbox let go; resent: sent a second time because the topic was made anew (`topic_changes` times).
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
class Tally:
    """The counts as they are kept, guarded by the emitter's lock. `queued` wait in its queue, `held` in the courier's memory."""

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
    held: int = 0
    held_bytes: int = 0
    again: int = 0
    """Outcomes still to come that are second ones."""
    room: int = 0
    """Bytes that the outbox can take before anything undelivered would have to go."""

    @property
    def buffered(self) -> int:
        return self.emitted + self.recovered - self.delivered - self.failed

    def take(self, count: int, size: int) -> None:
        """Count events that left the queue."""
        self.queued -= count
        self.queued_bytes -= size

    def hold(self, count: int, size: int) -> None:
        """Count events that are in the courier's memory now (negative: that left it)."""
        self.held += count
        self.held_bytes += size

    def repeats(self, count: int) -> int:
        """How many of `count` outcomes are second ones, of events sent again; they are counted as resent alone."""
        repeated = min(count, self.again)
        self.again -= repeated
        self.resent += repeated
        return repeated

    def read(self, *, stored: bool) -> Counters:
        """Return the counts of this moment; `stored`: there is an outbox."""
        on_disk = self.buffered - self.queued if stored else 0
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


class Mark:
    """A mark in the queue: done when every line before it is on disk (`stored`), or has its outcome; `until`: the next line."""

    def __init__(self, *, stored: bool = False) -> None:
        self.stored = stored
        self.done = threading.Event()
        self.until = 0
        self.sent = False
