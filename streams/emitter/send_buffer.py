"""The shelf: lines that the emitter has taken and not yet sent, in memory, and with an outbox on disk before that.

Lines are numbered as they come and are drawn in that order, whichever of the two they are in: what does not fit memory is read
back from disk in its turn. When the topic was lost, drawing begins again at the oldest line that is kept.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from streams.emitter.counters import Tally
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line

log = logging.getLogger(__name__)

Drawn = tuple[int, list[Line]]


class Shelf:
    """Belongs to the courier's thread; `tally` is guarded by `changed`. `drop(lines, reason)` gets what a full outbox lets go."""

    def __init__(
        self,
        outbox: Outbox | None,
        tally: Tally,
        changed: threading.Condition,
        max_bytes: int,
        drop_oldest: bool,
        drop: Callable[[list[bytes], str], None] | None,
    ) -> None:
        self.outbox = outbox
        self.next = 0
        self.place = 0
        self.unstored = 0
        """Lines in memory with this number or a higher one are on disk too."""
        self._ahead: deque[Drawn] = deque()
        self._behind = self._failing = False
        self._tally = tally
        self._changed = changed
        self._max_bytes = max_bytes
        self._drop_oldest = drop_oldest
        self._drop = drop
        if outbox is not None:
            self._resume(outbox)

    def _resume(self, outbox: Outbox) -> None:
        """Begin where the process before stopped."""
        self.next = outbox.next
        self.place = min(self.next, max(outbox.mark.next, outbox.oldest))
        self._tally.recovered = outbox.count(self.place, self.next)
        self._tally.room = outbox.max_bytes - outbox.pending_bytes
        self._behind = self._tally.recovered > 0
        if self._behind:
            log.info("event=outbox_resumed folder=%s events=%d", outbox.folder, self._tally.recovered)

    def has_more(self) -> bool:
        """Whether there is something to draw now."""
        return bool(self._ahead) or (self._behind and self._has_room())

    def wants_room(self) -> bool:
        """Whether lines on disk wait for memory."""
        return self._behind

    def put(self, lines: list[Line], frontier: int) -> bool:
        """Take lines from the queue; False when they must stay there, so that none is lost or overtaken: the disk refused them.

        All lines before `frontier` have their outcome.
        """
        stored = self.outbox is None or self._write(self.outbox, lines, frontier)
        if not stored and (self._behind or not self._has_room()):
            return False
        if not stored and self.outbox is not None:
            self.outbox.skip(len(lines))
            self.unstored = self.outbox.next
        first, self.next = self.next, self.next + len(lines)
        self._behind = self._behind or not self._has_room()
        size = count_bytes(lines)
        with self._changed:
            self._tally.take(len(lines), size)
            if not self._behind:
                self._tally.hold(len(lines), size)
            if self.outbox is not None:
                self._tally.room = self.outbox.max_bytes - self.outbox.pending_bytes
        if not self._behind:
            self._ahead.append((first, lines))
        return True

    def draw(self, now: float) -> Drawn | None:
        """The next lines to send with the number of the first; None when there are none. Lines from disk get the time `now`."""
        if not self._ahead and self._behind and self._has_room():
            self._read(now)
        if not self._ahead:
            return None
        first, lines = self._ahead.popleft()
        self.place = first + len(lines)
        return first, lines

    def rewind(self, *, forget: bool) -> None:
        """Begin again at the oldest line that is kept; with `forget`, with nothing in memory."""
        if self.outbox is None:
            return
        if forget:
            self._ahead.clear()
        self.place, self._behind = self.outbox.oldest, True

    def close(self) -> None:
        """Let another process have the outbox."""
        if self.outbox is not None:
            try:
                self.outbox.close()
            except OSError as error:
                self._say_failing(self.outbox, error)

    def empty(self, end: float) -> list[Line]:
        """Take out what is in memory; return the lines of it with numbers below `end`."""
        lines = [line for first, drawn in self._ahead if first < end for line in drawn]
        self._ahead.clear()
        return lines

    def tend(self, frontier: int, topic_id: str | None) -> None:
        """Bring mark, disk and bounds of the outbox up to date: all lines before `frontier` have their outcome."""
        if self.outbox is None:
            return
        try:
            self.outbox.settle(frontier, topic_id)
            self.outbox.sync()
            self.outbox.trim()
        except OSError as error:
            self._say_failing(self.outbox, error)
        with self._changed:
            self._tally.room = self.outbox.max_bytes - self.outbox.pending_bytes

    def _has_room(self) -> bool:
        return self.outbox is None or self._tally.held_bytes < self._max_bytes

    def _read(self, now: float) -> None:
        """Bring the next lines from disk to memory."""
        if self.outbox is None:
            return
        try:
            first, lines = self.outbox.read(self.place, now)
        except OSError as error:
            self._say_failing(self.outbox, error)
            return
        if lines:
            self._ahead.append((first, lines))
            with self._changed:
                self._tally.hold(len(lines), count_bytes(lines))
        else:
            self._behind, self.place = False, self.next

    def _write(self, outbox: Outbox, lines: list[Line], frontier: int) -> bool:
        """Append lines to the outbox; False when the disk refuses."""
        try:
            self._make_room(outbox, count_bytes(lines), frontier)
            outbox.append(lines)
        except OSError as error:
            self._say_failing(outbox, error)
            return False
        if self._failing:
            self._failing = False
            log.warning("event=outbox_back folder=%s", outbox.folder)
        return True

    def _make_room(self, outbox: Outbox, more: int, frontier: int) -> None:
        """Keep the outbox within its bound: what is delivered goes first, then, if so set, the oldest of the rest."""
        if outbox.victim(more) is None:
            return
        outbox.settle(frontier, outbox.mark.topic_id)
        outbox.trim()
        while (victim := outbox.victim(more)) is not None and (self._drop_oldest or victim.next <= frontier):
            self._forget_ahead(victim.next)
            begin = max(self.place, victim.first)
            if lost := outbox.count(begin, victim.next):
                self._let_go(outbox, begin, victim.next, lost)
            self.place = max(self.place, victim.next)
            self.unstored = max(self.unstored, victim.next)
            outbox.discard()

    def _forget_ahead(self, end: int) -> None:
        """Take lines before number `end` out of memory."""
        while self._ahead and self._ahead[0][0] < end:
            lines = self._ahead.popleft()[1]
            with self._changed:
                self._tally.hold(-len(lines), -count_bytes(lines))

    def _let_go(self, outbox: Outbox, begin: int, end: int, lost: int) -> None:
        """Count and report lines that leave the outbox unsent."""
        reason = f"the outbox {outbox.folder} is full: emitter.outbox_max_bytes is {outbox.max_bytes}"
        said = "lost: start the broker, or raise emitter.outbox_max_bytes"
        log.error("event=outbox_dropped events=%d reason=%r action=%r", lost, reason, said)
        with self._changed:
            fresh = lost - self._tally.repeats(lost)
            self._tally.failed += fresh
            self._tally.dropped += fresh
        while self._drop is not None and begin < end:
            begin, lines = outbox.read(begin)
            kept = [one.line for one in lines[: max(0, end - begin)]]
            if not kept:
                return
            self._drop(kept, reason)
            begin += len(kept)

    def _say_failing(self, outbox: Outbox, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            said = "free the disk: until then events are kept in memory only, and refused when that is full"
            log.error("event=outbox_failed folder=%s error=%r action=%r", outbox.folder, str(error), said)


def count_bytes(lines: Sequence[Line]) -> int:
    """Bytes of the lines themselves."""
    return sum(len(one.line) for one in lines)
