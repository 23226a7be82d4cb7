"""The send buffer: lines that the emitter has accepted and not yet sent, in memory and, with an outbox, on disk first.

Lines are numbered as they arrive and are sent in that order: lines that do not fit in memory are read back from disk when it is
their turn. When the topic was lost, sending begins again at the oldest line that is kept.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from streams.emitter.counters import SendCounters
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line

log = logging.getLogger(__name__)

NumberedLines = tuple[int, list[Line]]


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
        self.stored_from = 0
        """Lines in memory with this number or a higher one are on disk as well."""
        self._in_memory: deque[NumberedLines] = deque()
        self._reads_disk = self._disk_fails = False
        self._counters = counters
        self._condition = condition
        self._max_bytes = max_bytes
        self._drop_oldest = drop_oldest
        self._drop = drop
        if outbox is not None:
            self._resume(outbox)

    def _resume(self, outbox: Outbox) -> None:
        """Begin where the previous process stopped."""
        self.next = outbox.next
        self.next_to_send = min(self.next, max(outbox.mark.next, outbox.oldest))
        self._counters.recovered = outbox.count(self.next_to_send, self.next)
        self._counters.outbox_free_bytes = outbox.max_bytes - outbox.undelivered_bytes
        self._reads_disk = self._counters.recovered > 0
        if self._reads_disk:
            log.info("event=outbox_resumed folder=%s events=%d", outbox.folder, self._counters.recovered)

    def has_lines(self) -> bool:
        """Return whether there are lines to send now."""
        return bool(self._in_memory) or (self._reads_disk and self._has_memory())

    def waits_for_memory(self) -> bool:
        """Return whether lines on disk wait to be read into memory."""
        return self._reads_disk

    def add(self, lines: list[Line], low_watermark: int) -> bool:
        """Accept lines from the queue; False when the disk refuses and they must stay there, so that none is lost or overtaken.

        All lines before `low_watermark` have their outcome.
        """
        stored = self.outbox is None or self._write_disk(self.outbox, lines, low_watermark)
        if not stored and (self._reads_disk or not self._has_memory()):
            return False
        if not stored and self.outbox is not None:
            self.outbox.skip_numbers(len(lines))
            self.stored_from = self.outbox.next
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
        if not self._in_memory and self._reads_disk and self._has_memory():
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

    def close(self) -> None:
        """Release the outbox, so that another process can use it."""
        if self.outbox is not None:
            try:
                self.outbox.close()
            except OSError as error:
                self._log_disk_failure(self.outbox, error)

    def drain(self, end: float) -> list[Line]:
        """Empty the memory; return the lines from it with numbers below `end`."""
        lines = [line for first, some in self._in_memory if first < end for line in some]
        self._in_memory.clear()
        return lines

    def maintain(self, low_watermark: int, topic_id: str | None) -> None:
        """Update the outbox: its delivery mark, fsync, and size; all lines before `low_watermark` have their outcome."""
        if self.outbox is None:
            return
        try:
            self.outbox.mark_delivered(low_watermark, topic_id)
            self.outbox.sync()
            self.outbox.trim()
        except OSError as error:
            self._log_disk_failure(self.outbox, error)
        with self._condition:
            self._counters.outbox_free_bytes = self.outbox.max_bytes - self.outbox.undelivered_bytes

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
            self._free_disk(outbox, count_bytes(lines), low_watermark)
            outbox.append(lines)
        except OSError as error:
            self._log_disk_failure(outbox, error)
            return False
        if self._disk_fails:
            self._disk_fails = False
            log.warning("event=outbox_back folder=%s", outbox.folder)
        return True

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
            self.next_to_send = max(self.next_to_send, segment.next)
            self.stored_from = max(self.stored_from, segment.next)
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
        said = "lost: start the broker, or raise emitter.outbox_max_bytes"
        log.error("event=outbox_dropped events=%d reason=%r action=%r", dropped, reason, said)
        with self._condition:
            first_outcomes = dropped - self._counters.count_resent(dropped)
            self._counters.failed += first_outcomes
            self._counters.dropped += first_outcomes
        while self._drop is not None and begin < end:
            begin, lines = outbox.read(begin)
            kept = [one.line for one in lines[: max(0, end - begin)]]
            if not kept:
                return
            self._drop(kept, reason)
            begin += len(kept)

    def _log_disk_failure(self, outbox: Outbox, error: OSError) -> None:
        if not self._disk_fails:
            self._disk_fails = True
            said = "free the disk: until then events are kept in memory only, and refused when that is full"
            log.error("event=outbox_failed folder=%s error=%r action=%r", outbox.folder, str(error), said)


def count_bytes(lines: Sequence[Line]) -> int:
    """Return the bytes of the lines, without sessions."""
    return sum(len(one.line) for one in lines)
