"""The send buffer: lines that the emitter has accepted and not yet sent, in memory and, with an outbox, on disk first.

Lines are numbered as they arrive and are sent in that order: lines that do not fit in memory are read back from disk when it is
their turn. When the topic was lost, sending begins again at the oldest line that is kept.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from streams.emitter.counters import SendCounters
from streams.emitter.outbox import Outbox, OutboxError
from streams.emitter.record_batches import Line
from streams.emitter.segments import Segment

log = logging.getLogger(__name__)

NumberedLines = tuple[int, list[Line]]
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class SendBuffer:
    """Used by the sender's thread only; `condition` guards `counters`; `drop(lines, reason)` gets what a full outbox drops."""

    def __init__(
        self,
        outbox: Outbox | None,
        counters: SendCounters,
        condition: threading.Condition,
        max_bytes: int,
        drop_oldest: bool,
        drop: Callable[[list[bytes], str], None] | None,
    ) -> None:
        self.outbox = outbox
        self.next = 0
        self.next_to_send = 0
        self._unstored: list[tuple[int, int]] = []  # numbers, begin to end, of lines that are not on disk for certain
        self._synced_to = 0
        self._in_memory: deque[NumberedLines] = deque()
        self._reads_disk = self._disk_fails = self._read_fails = self._write_fails = False
        self._counters = counters
        self._condition = condition
        self._max_bytes = max_bytes
        self._drop_oldest = drop_oldest
        self._drop = drop
        if outbox is not None:
            self._resume(outbox)

    def _resume(self, outbox: Outbox) -> None:
        """Begin where the previous process stopped."""
        self.next = self._synced_to = outbox.next
        self.next_to_send = min(self.next, max(outbox.mark.next, outbox.oldest))
        self._counters.recovered = outbox.count(self.next_to_send, self.next)
        self._counters.outbox_free_bytes = outbox.max_bytes - outbox.undelivered_bytes
        self._reads_disk = self._counters.recovered > 0
        if self._reads_disk:
            log.info("event=outbox_resumed folder=%s events=%d", outbox.folder, self._counters.recovered)

    @property
    def stored_from(self) -> int:
        """Lines in memory with this number or a higher one are on disk as well."""
        return self._unstored[-1][1] if self._unstored else 0

    def unstored_end(self, end: int) -> int:
        """Return the number after the last line below `end` that is not on disk, 0 when all are; without an outbox `end`."""
        if self.outbox is None:
            return end
        return max((min(stop, end) for begin, stop in self._unstored if begin < end), default=0)

    def forget_outcomes(self, low_watermark: int) -> None:
        """Forget which lines before `low_watermark` were not on disk: they have their outcome."""
        if self._unstored:
            self._unstored = [(max(begin, low_watermark), end) for begin, end in self._unstored if end > low_watermark]
            self._count_unstored()

    def sync(self) -> None:
        """Make the lines on disk survive a loss of power; those that may not count as not on disk from now on."""
        if self.outbox is None:
            return
        begin, self._synced_to = self._synced_to, self.outbox.next
        try:
            if not self.outbox.is_there():
                self._make_again(self.outbox)
            self.outbox.sync()
        except (OSError, OutboxError) as error:
            self._log_disk_failure(self.outbox, error)
            self._note_unstored(begin, self.outbox.next)
        else:
            self._log_disk_back(self.outbox)

    def has_lines(self) -> bool:
        """Return whether there are lines to send now."""
        return bool(self._in_memory) or (self._reads_disk and not self._read_fails and self._has_memory())

    def waits_for_memory(self) -> bool:
        """Return whether lines on disk wait to be read into memory."""
        return self._reads_disk

    def add(self, lines: list[Line], low_watermark: int, *, can_send: bool = True) -> bool:
        """Accept lines from the queue; False when the disk refuses and they must stay there, so that none is lost or overtaken.

        Lines that the disk refuses are accepted into memory only if they `can_send` now: the others wait for the disk. All lines
        before `low_watermark` have their outcome.
        """
        stored = self.outbox is None or self._write_disk(self.outbox, lines, low_watermark)
        if not stored and (self._reads_disk or not can_send or not self._has_memory()):
            return False
        if not stored and self.outbox is not None:
            self._note_unstored(self.outbox.next, self.outbox.next + len(lines))
            self.outbox.skip_numbers(len(lines))
        first, self.next = self.next, self.next + len(lines)
        self._reads_disk = self._reads_disk or not self._has_memory()
        size = count_bytes(lines)
        with self._condition:
            self._counters.leave_queue(len(lines), size)
            if not self._reads_disk:
                self._counters.enter_memory(len(lines), size)
            if self.outbox is not None:
                self._counters.outbox_free_bytes = self.outbox.max_bytes - self.outbox.undelivered_bytes
        if not self._reads_disk:
            self._in_memory.append((first, lines))
        return True

    def take_next(self, now: float) -> NumberedLines | None:
        """Return the next lines to send and the number of the first, None without lines; lines from disk get the time `now`."""
        if not self._in_memory and self._reads_disk and not self._read_fails and self._has_memory():
            self._read_disk(now)
        if not self._in_memory:
            return None
        first, lines = self._in_memory.popleft()
        self.next_to_send = first + len(lines)
        return first, lines

    def restart(self, *, drop_memory: bool) -> None:
        """Begin again at the oldest line that is kept; with `drop_memory`, forget the lines in memory."""
        if self.outbox is None:
            return
        if drop_memory:
            self._in_memory.clear()
        self.next_to_send, self._reads_disk = self.outbox.oldest, True

    def close(self) -> bool:
        """Release the outbox, so that another process can use it; return whether what is on disk survives a loss of power."""
        if self.outbox is None:
            return True
        try:
            self.outbox.close()
        except OSError as error:
            self._log_disk_failure(self.outbox, error)
            return False
        return True

    def drain(self, end: float) -> list[Line]:
        """Empty the memory; return the lines from it with numbers below `end`."""
        lines = [line for first, some in self._in_memory if first < end for line in some]
        self._in_memory.clear()
        return lines

    def maintain(self, low_watermark: int, topic_id: str | None) -> None:
        """Update the outbox: its delivery mark, fsync, and size; all lines before `low_watermark` have their outcome."""
        if self.outbox is None:
            return
        self._read_fails = False
        self.sync()
        for step in (partial(self.outbox.mark_delivered, low_watermark, topic_id), self.outbox.trim):
            try:
                step()
            except OSError as error:
                self._log_disk_failure(self.outbox, error)
        with self._condition:
            self._counters.outbox_free_bytes = self.outbox.max_bytes - self.outbox.undelivered_bytes

    def _note_unstored(self, begin: int, end: int) -> None:
        """Note that lines are not on disk, or not for certain."""
        merged: list[tuple[int, int]] = []
        for first, stop in sorted([*self._unstored, (begin, end)] if begin < end else self._unstored):
            joins = bool(merged) and first <= merged[-1][1]
            merged.append((merged[-1][0], max(merged.pop()[1], stop)) if joins else (first, stop))
        self._unstored = merged
        self._count_unstored()

    def _count_unstored(self) -> None:
        with self._condition:
            self._counters.unstored = sum(end - begin for begin, end in self._unstored)

    def _has_memory(self) -> bool:
        return self.outbox is None or self._counters.memory_bytes < self._max_bytes

    def _read_disk(self, now: float) -> None:
        """Read the next lines from disk into memory."""
        if self.outbox is None:
            return
        try:
            first, lines = self.outbox.read(self.next_to_send, now)
        except OSError as error:
            self._log_disk_failure(self.outbox, error)
            self._read_fails = True  # until the next maintenance
            return
        if lines:
            self._in_memory.append((first, lines))
            with self._condition:
                self._counters.enter_memory(len(lines), count_bytes(lines))
        else:
            self._reads_disk, self.next_to_send = False, self.next

    def _write_disk(self, outbox: Outbox, lines: list[Line], low_watermark: int) -> bool:
        """Append lines to the outbox; False when the disk refuses them."""
        try:
            if not outbox.is_there():
                self._make_again(outbox)
            self._free_disk(outbox, count_bytes(lines), low_watermark)
            self._append(outbox, lines)
        except (OSError, OutboxError) as error:
            self._write_fails = True
            self._log_disk_failure(outbox, error)
            return False
        self._write_fails = False
        return True

    def _append(self, outbox: Outbox, lines: list[Line]) -> None:
        """Append lines; on a full disk delete delivered ones, the oldest first, for as long as that may help."""
        if outbox.is_segment_full:
            self.sync()  # the next segment syncs this one too; here a failure is noted for the lines before it
        while True:
            try:
                outbox.append(lines)
            except OSError as error:
                if error.errno not in NO_SPACE or not outbox.delete_delivered():
                    raise
            else:
                return

    def _make_again(self, outbox: Outbox) -> None:
        """Make the outbox's folder anew after somebody removed it; report the lines that were there alone as lost."""
        gone = outbox.make_again()
        reason = f"the outbox {outbox.folder} was removed or moved while it was in use"
        unread = self._in_memory[-1][0] + len(self._in_memory[-1][1]) if self._in_memory else self.next_to_send
        for segment in gone:
            self._note_unstored(segment.first, segment.next)
            if lost := _count_after(segment, unread) if self._reads_disk else 0:
                self._count_dropped(lost, reason, "lost unless the folder is put back and an emitter started on it")
        self._synced_to = outbox.next

    def _free_disk(self, outbox: Outbox, size_needed: int, low_watermark: int) -> None:
        """Keep the outbox within its size: delete delivered segments first, then, if the settings say so, the oldest others."""
        if outbox.segment_to_drop(size_needed) is None:
            return
        outbox.mark_delivered(low_watermark, outbox.mark.topic_id)
        outbox.trim()
        while (segment := outbox.segment_to_drop(size_needed)) is not None and (
            self._drop_oldest or segment.next <= low_watermark
        ):
            self._drop_from_memory(segment.next)
            begin = max(self.next_to_send, segment.first)
            if dropped := outbox.count(begin, segment.next):
                self._report_dropped(outbox, begin, segment.next, dropped)
            self._note_unstored(low_watermark, min(segment.next, self.next_to_send))  # on their way to the broker
            self.next_to_send = max(self.next_to_send, segment.next)
            outbox.delete_oldest()

    def _drop_from_memory(self, end: int) -> None:
        """Remove lines before number `end` from memory."""
        while self._in_memory and self._in_memory[0][0] < end:
            lines = self._in_memory.popleft()[1]
            with self._condition:
                self._counters.enter_memory(-len(lines), -count_bytes(lines))

    def _report_dropped(self, outbox: Outbox, begin: int, end: int, dropped: int) -> None:
        """Count and report lines that are deleted from the outbox before they were sent."""
        reason = f"the outbox {outbox.folder} is full: emitter.outbox_max_bytes is {outbox.max_bytes}"
        self._count_dropped(dropped, reason, "lost: start the broker, or raise emitter.outbox_max_bytes")
        while self._drop is not None and begin < end:
            begin, lines = outbox.read(begin)
            kept = [one.line for one in lines[: max(0, end - begin)]]
            if not kept:
                return
            self._drop(kept, reason)
            begin += len(kept)

    def _count_dropped(self, dropped: int, reason: str, action: str) -> None:
        log.error("event=outbox_dropped events=%d reason=%r action=%r", dropped, reason, action)
        with self._condition:
            first_outcomes = dropped - self._counters.count_resent(dropped)
            self._counters.failed += first_outcomes
            self._counters.dropped += first_outcomes

    def _log_disk_failure(self, outbox: Outbox, error: Exception) -> None:
        self._counters.disk_error = str(error)
        if not self._disk_fails:
            self._disk_fails = True
            said = "free the disk: until then events are sent from memory, and none is stored while no broker answers"
            log.error("event=outbox_failed folder=%s error=%r action=%r", outbox.folder, str(error), said)

    def _log_disk_back(self, outbox: Outbox) -> None:
        if self._disk_fails and not self._write_fails:
            self._disk_fails, self._counters.disk_error = False, ""
            log.warning("event=outbox_back folder=%s", outbox.folder)


def _count_after(segment: Segment, number: int) -> int:
    """Return how many of a segment's lines have this number or a higher one."""
    return segment.lines if number <= segment.first else max(0, segment.next - number)


def count_bytes(lines: Sequence[Line]) -> int:
    """Return the bytes of the lines, without sessions."""
    return sum(len(one.line) for one in lines)
