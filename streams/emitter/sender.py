"""The sender: the emitter's background thread, which takes lines from the queue and delivers them to the broker.

Lines are always sent in the order of their numbers (`streams.emitter.send_buffer`), beginning after the last delivered line or,
when the topic was lost, at the oldest line that the outbox keeps. So no line overtakes an earlier one of its partition.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from streams.brokers.connection import Address, bootstrap_of
from streams.emitter.counters import FlushMarker, Marker, SendCounters, StoreMarker
from streams.emitter.delivery import RECONNECT_S, Connect, Delivery, RecordFormat
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Batcher, Line, Record, partition_of
from streams.emitter.send_buffer import SendBuffer, count_bytes
from streams.emitter.store_markers import StoreMarkers, refuse

log = logging.getLogger(__name__)

IDLE_S = 1.0
ABANDONED_S = 5.0
"""Seconds that a garbage-collected emitter waits for a broker when its events are on disk anyway, as closing does."""
FOREVER = float("inf")
CHUNK_LINES = 1000
CHUNK_BYTES = 262_144
"""Lines, and bytes of them, that one frame of the outbox has at most."""
ROUND_LINES = 2000
"""Lines that are sent before the queue is checked again, so that new lines reach the disk soon."""

OnFailure = Callable[[Sequence[bytes], str], None]


@dataclass(frozen=True)
class SenderSettings:
    """The emitter's settings that the sender needs; durations in seconds."""

    batch_events: int
    batching_delay_s: float
    timeout_s: float
    max_bytes: int
    sync_s: float
    drop_oldest: bool
    syncs_on_store: bool = True


class Sender:
    """The work of the thread. `condition` guards the public attributes; only the thread uses the others."""

    def __init__(
        self,
        address: Address,
        topic: str,
        settings: SenderSettings,
        outbox: Outbox | None,
        condition: threading.Condition,
        clock: Callable[[], float],
        connect: Connect | None,
        record_format: RecordFormat,
        on_failure: OnFailure | None,
    ) -> None:
        self.counters = SendCounters()
        self.queue: deque[Line | Marker] = deque()
        self.positions: dict[int, int] = {}
        self.idle = self.closing = False
        self.abandoned_at: float | None = None
        """When the emitter was garbage-collected, by the clock."""
        self.has_stores = False
        """Whether a store marker was put into the queue."""
        self.lost_none = False
        """Whether the sender has ended and every event is delivered or on disk."""
        self._condition = condition
        self._has_outcomes = False
        self._failed_lines: deque[tuple[list[bytes], str]] = deque()
        self._bootstrap, self._topic, self._settings, self._clock = bootstrap_of(address), topic, settings, clock
        self._on_failure = on_failure
        self._has_outbox = outbox is not None
        self._topic_id = outbox.mark.topic_id if outbox is not None else None
        drop = None if on_failure is None else lambda lines, reason: self._failed_lines.append((lines, reason))
        self._buffer = SendBuffer(outbox, self.counters, condition, settings.max_bytes, settings.drop_oldest, drop)
        self._stores = StoreMarkers(self._buffer, sync=settings.syncs_on_store)
        self._batcher = Batcher(settings.batch_events)
        self._delivery = Delivery(
            address,
            topic,
            settings.timeout_s,
            self._record_outcome,
            condition,
            clock,
            connect,
            record_format=record_format,
            keeps_trying=self._has_outbox,
            on_connected=self._follow_topic,
        )
        self._flushes: list[FlushMarker] = []
        self._maintained_at = clock()

    def run(self) -> None:
        """Work until `closing` is set."""
        reason = "closed before delivery"
        try:
            while not self.closing:
                self._run_once()
                self._end_if_abandoned()
            self._store_remaining()
        except Exception as error:
            log.exception("event=emitter_stopped action=%r", "this is a defect: restart the process and report it")
            reason = f"the emitter stopped: {error!r}"
        finally:
            self._stop(reason)

    def leave_to_parent(self) -> None:
        """In a forked child: keep the copied producer from doing anything, its sockets are the parent's."""
        self._delivery.leave_to_parent()

    def _run_once(self) -> None:
        ready = self._delivery.advance()
        if self._follow_topic():
            ready = self._delivery.advance()
        self._report_failed()
        if not self._has_outbox and not ready:
            self._expire()
            self._wait_for_retry(ready)
            self._refuse_stores()
            return
        self._accept_queued(ready)
        self._settle_stores(ready)
        if ready:
            self._send_next()
        if self._has_outbox and self._clock() - self._maintained_at >= self._settings.sync_s:
            self._maintain()
        self._finish_flushes()

    def _wait_for_retry(self, ready: bool) -> None:
        """Wait until it is time to try the broker or the disk again; who asks to store has the disk tried at once."""
        self._settle_stores(ready)
        with self._condition:
            self._condition.wait_for(lambda: self.closing or (self.has_stores and not ready), RECONNECT_S)

    def _refuse_stores(self) -> None:
        """Without an outbox and a connection: tell all who ask to store that their events are not safe."""
        with self._condition:
            refused = [one for one in self.queue if isinstance(one, StoreMarker)] if self.has_stores else []
            self.has_stores = False
            if refused:
                self.queue = deque(one for one in self.queue if not isinstance(one, StoreMarker))
        refuse(refused)

    def _settle_stores(self, ready: bool) -> None:
        """Answer who asked to store; with a connection to the broker they may wait for its acknowledgement."""
        if self._stores:
            self._stores.settle(self._low_watermark(), can_wait=ready)

    def _end_if_abandoned(self) -> None:
        """End when the emitter was garbage-collected and its events are delivered, or safe on disk and nobody takes them."""
        if self.abandoned_at is not None:
            is_late = self._clock() - self.abandoned_at >= ABANDONED_S
            with self._condition:
                counters = self.counters.snapshot(has_outbox=self._has_outbox)
                self.closing = self.closing or counters.buffered == (counters.on_disk if is_late else 0)

    def _accept_queued(self, ready: bool) -> None:
        """Wait until there is something to do, then move the queue into the send buffer."""
        with self._condition:
            if not self._has_work(ready):
                self.idle = self._batcher.oldest_at() is None
                self._condition.wait(self._seconds_to_wait(ready))
                self.idle = False
            self._has_outcomes = self.has_stores = False
            queued = list(self.queue)
            self.queue.clear()
        done = self._add_to_buffer(queued, ready)
        if done < len(queued):
            left = queued[done:]
            refuse([] if ready else [one for one in left if isinstance(one, StoreMarker)])
            with self._condition:
                self.queue.extendleft(one for one in reversed(left) if ready or not isinstance(one, StoreMarker))
            self._wait_for_retry(ready)

    def _has_work(self, ready: bool) -> bool:
        if self.closing or self._delivery.has_failures or self._has_outcomes or (ready and self._buffer.has_lines()):
            return True
        return len(self.queue) >= self._settings.batch_events or any(isinstance(one, Marker) for one in self.queue)

    def _seconds_to_wait(self, ready: bool) -> float:
        """Return how long to wait for new lines before something else is due."""
        if not ready:
            return min(RECONNECT_S, self._settings.batching_delay_s)
        oldest = self._batcher.oldest_at()
        delay = IDLE_S if oldest is None else max(0.0, oldest + self._settings.batching_delay_s - self._clock())
        return min(delay, self._settings.sync_s) if self._has_outbox else delay

    def _add_to_buffer(self, queued: Sequence[Line | Marker], can_send: bool) -> int:
        """Add lines to the send buffer and note markers; return how many were accepted (fewer than all: the disk refused)."""
        done = 0
        for chunk in _split(queued):
            if isinstance(chunk, list):
                if not self._buffer.add(chunk, self._low_watermark(), can_send=can_send):
                    break
                done += len(chunk)
                continue
            self._pass_marker(chunk)
            done += 1
        return done

    def _pass_marker(self, marker: Marker) -> None:
        if isinstance(marker, StoreMarker):
            self._stores.add(marker)
        else:
            marker.end = self._buffer.next
            self._flushes.append(marker)

    def _send_next(self) -> None:
        """Batch and send the next lines, as far as memory allows."""
        budget = ROUND_LINES if self._has_outbox else FOREVER
        while budget > 0 and (batch := self._buffer.take_next(self._clock())) is not None:
            first, lines = batch
            for number, one in enumerate(lines, first):
                partition = partition_of(one.session_id, self._delivery.partitions)
                if full := self._batcher.add(one.line, one.session_id, partition, one.emitted_at, number):
                    self._delivery.send(full)
            budget -= len(lines)
        for record in self._batcher.take_due(
            FOREVER if self._reached_flush() else self._clock() - self._settings.batching_delay_s
        ):
            self._delivery.send(record)

    def _reached_flush(self) -> bool:
        """Return whether a flush marker was reached for the first time, so that open records must be sent now."""
        reached = [marker for marker in self._flushes if not marker.sent and marker.end <= self._buffer.next_to_send]
        for marker in reached:
            marker.sent = True
        return bool(reached)

    def _low_watermark(self) -> int:
        """Return the number below which every line has its outcome."""
        with self._condition:
            sent = self._delivery.lowest_number()
        pending = [one for one in (sent, self._batcher.lowest_number()) if one is not None]
        return min([self._buffer.next_to_send, *pending])

    def _maintain(self) -> None:
        self._maintained_at = self._clock()
        self._buffer.maintain(self._low_watermark(), self._topic_id)

    def _follow_topic(self) -> bool:
        """Return whether the topic was deleted and made anew since the last call; if so, send again what the outbox keeps."""
        found = self._delivery.topic_id
        if found is None or found == self._topic_id:
            return False
        previous, self._topic_id = self._topic_id, found
        if previous is None:
            return False
        with self._condition:
            self.counters.topic_changes += 1
            self.positions.clear()
        kept = self._resend_kept()
        said = "what the outbox kept is sent again" if self._has_outbox else "set emitter.outbox_dir to have events sent again"
        log.warning("event=topic_changed topic=%s was=%s is=%s kept=%d said=%r", self._topic, previous, found, kept, said)
        return True

    def _resend_kept(self) -> int:
        """Go back to the oldest line that is kept; return how many lines will be sent again."""
        outbox = self._buffer.outbox
        if outbox is None:
            return 0
        kept = outbox.count(outbox.oldest, outbox.next)
        drop_memory = self._low_watermark() >= self._buffer.stored_from  # otherwise some lines are in memory only
        if drop_memory:
            self._batcher.take_due(FOREVER)
            self._delivery.drop_pending()
        with self._condition:
            counters = self.counters
            counters.resends_pending = max(0, kept - (counters.buffered - counters.queued))
            if drop_memory:
                counters.in_memory = counters.memory_bytes = 0
            else:
                counters.resends_pending += counters.in_memory
        self._buffer.restart(drop_memory=drop_memory)
        self._maintain()
        return kept

    def _record_outcome(self, record: Record, offset: int | None, reason: str) -> None:
        """Count a record's outcome; Delivery calls it with the lock held."""
        counters, count = self.counters, len(record.lines)
        counters.enter_memory(-count, -sum(map(len, record.lines)))
        first_outcomes = count - counters.count_resent(count)
        if offset is None:
            counters.failed += first_outcomes
            self._failed_lines.append((record.lines, reason))
        else:
            counters.delivered += first_outcomes
            self.positions[record.partition] = max(self.positions.get(record.partition, 0), offset + 1)
        if self._flushes or self._stores or self._buffer.waits_for_memory():
            self._has_outcomes = True
            self._condition.notify()

    def _finish_flushes(self) -> None:
        if not self._flushes and not self._buffer.stored_from:
            return
        low_watermark = self._low_watermark()
        self._buffer.forget_outcomes(low_watermark)
        for marker in self._flushes:
            if marker.end <= low_watermark:
                marker.done.set()
        self._flushes = [marker for marker in self._flushes if not marker.done.is_set()]

    def _report_failed(self) -> None:
        with self._condition:
            failed = list(self._failed_lines)
            self._failed_lines.clear()
        if self._on_failure is None:
            return
        for lines, reason in failed:
            try:
                self._on_failure(lines, reason)
            except Exception:
                log.exception("event=on_failure_raised events=%d", len(lines))

    def _expire(self) -> None:
        """Fail lines that waited too long for a first connection; only without an outbox, where they are in memory only."""
        limit = self._clock() - self._settings.timeout_s
        with self._condition:
            expired = [one for one in self.queue if isinstance(one, Line) and one.emitted_at <= limit]
            self.queue = deque(one for one in self.queue if not (isinstance(one, Line) and one.emitted_at <= limit))
            self._count_taken(expired)
        for record in _make_unassigned(expired) + self._batcher.take_due(limit):
            self._delivery.fail(record, f"not sent to {self._bootstrap}: {self._delivery.last_reason}")
        self._finish_flushes()
        self._report_failed()

    def _count_taken(self, lines: Sequence[Line]) -> None:
        """Count lines that move from the queue to memory; call it with the lock held."""
        size = count_bytes(lines)
        self.counters.leave_queue(len(lines), size)
        self.counters.enter_memory(len(lines), size)

    def _store_remaining(self) -> None:
        """With an outbox, store the lines that are still queued for the next process."""
        if not self._has_outbox:
            return
        with self._condition:
            queued = list(self.queue)
            self.queue.clear()
        unsent = queued[self._add_to_buffer(queued, can_send=False) :]
        with self._condition:
            self.queue.extendleft(reversed(unsent))
        self._maintain()
        self._settle_stores(ready=False)

    def _stop(self, reason: str) -> None:
        """End: lines on disk stay there for the next process; other lines without an outcome count as failed."""
        with self._condition:
            self.closing = True
            remaining = list(self.queue)
            self.queue.clear()
        unsent = [one for one in remaining if isinstance(one, Line)]
        with self._condition:
            failed = self.counters.failed
            self._count_taken(unsent)
        end = self._buffer.stored_from if self._has_outbox else FOREVER
        if self._has_outbox:
            self._delivery.drop_pending(self._buffer.stored_from)
        open_records = [one for one in self._batcher.take_due(FOREVER) if one.first_number < end]
        self._delivery.close(open_records + _make_unassigned(self._buffer.drain(end)) + _make_unassigned(unsent), reason)
        self._settle_stores(ready=False)
        is_synced = self._buffer.close()
        self._report_failed()
        with self._condition:
            self.lost_none = is_synced and self.counters.failed == failed
        for marker in (*self._flushes, *(one for one in remaining if isinstance(one, Marker))):
            marker.done.set()


def _split(queued: Sequence[Line | Marker]) -> Iterator[list[Line] | Marker]:
    """Yield the lines in chunks that each fit one frame of the outbox, and the markers between them."""
    chunk: list[Line] = []
    size = 0
    for one in queued:
        if chunk and (isinstance(one, Marker) or len(chunk) >= CHUNK_LINES or size + len(one.line) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        if isinstance(one, Marker):
            yield one
        else:
            chunk.append(one)
            size += len(one.line)
    if chunk:
        yield chunk


def _make_unassigned(lines: Sequence[Line]) -> list[Record]:
    """Return one record of lines that have no partition yet; no record for no lines."""
    return [Record(-1, b"", lines[0].emitted_at, [one.line for one in lines])] if lines else []
