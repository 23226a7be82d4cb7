"""The courier: the emitter's background thread, which takes lines from the queue and gets them to the broker.

What is sent is always one run through the lines' numbers (`streams.emitter.send_buffer`), from wherever it has to begin: after
the last delivered line, or, when the topic was lost, at the oldest line that the outbox keeps. So no line overtakes an
earlier one of its partition.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from streams.emitter.counters import Mark, Tally
from streams.emitter.delivery import RECONNECT_S, Connect, Delivery, Wire
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Batcher, Line, Record, partition_of
from streams.emitter.send_buffer import Shelf, count_bytes

log = logging.getLogger(__name__)

IDLE_S = 1.0
FOREVER = float("inf")
PIECE_LINES = 1000
PIECE_BYTES = 262_144
TURN_LINES = 2000
"""Lines sent between two looks at the queue, so that new ones soon reach the disk."""

OnFailure = Callable[[Sequence[bytes], str], None]


@dataclass(frozen=True)
class Pace:
    """What of the emitter's settings the courier works by."""

    batch_events: int
    linger_s: float
    timeout_s: float
    max_bytes: int
    sync_s: float
    drop_oldest: bool


class Courier:
    """What the thread does. The public attributes are guarded by `changed`; the rest is the thread's own."""

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        pace: Pace,
        outbox: Outbox | None,
        changed: threading.Condition,
        clock: Callable[[], float],
        connect: Connect | None,
        wire: Wire,
        on_failure: OnFailure | None,
    ) -> None:
        self.tally = Tally()
        self.queue: deque[Line | Mark] = deque()
        self.positions: dict[int, int] = {}
        self.idle = self.closing = False
        self._changed = changed
        self._news = False
        self._lost: deque[tuple[list[bytes], str]] = deque()
        self._bootstrap, self._topic, self._pace, self._clock = bootstrap, topic, pace, clock
        self._on_failure = on_failure
        self._stored = outbox is not None
        self._topic_id = outbox.mark.topic_id if outbox is not None else None
        drop = None if on_failure is None else lambda lines, reason: self._lost.append((lines, reason))
        self._shelf = Shelf(outbox, self.tally, changed, pace.max_bytes, pace.drop_oldest, drop)
        self._batcher = Batcher(pace.batch_events)
        self._delivery = Delivery(
            bootstrap,
            topic,
            pace.timeout_s,
            self._settle,
            changed,
            clock,
            connect,
            wire=wire,
            patient=self._stored,
            opened=self._follow_topic,
        )
        self._flushes: list[Mark] = []
        self._tended = clock()

    def run(self) -> None:
        """Work until `closing` is set."""
        reason = "closed before delivery"
        try:
            while not self.closing:
                self._cycle()
            self._store_rest()
        except Exception as error:
            log.exception("event=emitter_stopped action=%r", "this is a defect: restart the process and report it")
            reason = f"the emitter stopped: {error!r}"
        finally:
            self._stop(reason)

    def _cycle(self) -> None:
        ready = self._delivery.turn()
        if self._follow_topic():
            ready = self._delivery.turn()
        self._report_lost()
        if not self._stored and not ready:
            self._expire()
            with self._changed:
                self._changed.wait_for(lambda: self.closing, RECONNECT_S)
            return
        self._take(ready)
        if ready:
            self._feed()
        if self._stored and self._clock() - self._tended >= self._pace.sync_s:
            self._tend()
        self._finish_flushes()

    def _take(self, ready: bool) -> None:
        """Wait until there is something to do, then shelve what the queue holds."""
        with self._changed:
            if not self._has_work(ready):
                self.idle = self._batcher.oldest() is None
                self._changed.wait(self._patience(ready))
                self.idle = False
            self._news = False
            taken = list(self.queue)
            self.queue.clear()
        done = self._store(taken)
        if done < len(taken):
            with self._changed:
                self.queue.extendleft(reversed(taken[done:]))
                self._changed.wait_for(lambda: self.closing, RECONNECT_S)

    def _has_work(self, ready: bool) -> bool:
        if self.closing or self._delivery.troubled or self._news or (ready and self._shelf.has_more()):
            return True
        return len(self.queue) >= self._pace.batch_events or any(isinstance(one, Mark) for one in self.queue)

    def _patience(self, ready: bool) -> float:
        """Seconds until something is due though nothing comes."""
        if not ready:
            return min(RECONNECT_S, self._pace.linger_s)
        began = self._batcher.oldest()
        lingers = IDLE_S if began is None else max(0.0, began + self._pace.linger_s - self._clock())
        return min(lingers, self._pace.sync_s) if self._stored else lingers

    def _store(self, taken: Sequence[Line | Mark]) -> int:
        """Shelve lines and note marks; how many of them are done with (fewer than all: the disk refused)."""
        done = 0
        for piece in _cut(taken):
            if isinstance(piece, Mark):
                self._reach(piece)
                done += 1
            elif self._shelf.put(piece, self._frontier()):
                done += len(piece)
            else:
                break
        return done

    def _reach(self, mark: Mark) -> None:
        mark.until = self._shelf.next
        if mark.stored:
            mark.done.set()
        else:
            self._flushes.append(mark)

    def _feed(self) -> None:
        """Batch and send what is next, as far as memory allows."""
        budget = TURN_LINES if self._stored else FOREVER
        while budget > 0 and (drawn := self._shelf.draw(self._clock())) is not None:
            first, lines = drawn
            for number, one in enumerate(lines, first):
                partition = partition_of(one.session_id, self._delivery.partitions)
                if full := self._batcher.add(one.line, one.session_id, partition, one.at, number):
                    self._delivery.send(full)
            budget -= len(lines)
        for record in self._batcher.due(FOREVER if self._hurries() else self._clock() - self._pace.linger_s):
            self._delivery.send(record)

    def _hurries(self) -> bool:
        """Whether a flush begins to wait for records that are still open."""
        reached = [mark for mark in self._flushes if not mark.sent and mark.until <= self._shelf.place]
        for mark in reached:
            mark.sent = True
        return bool(reached)

    def _frontier(self) -> int:
        """Every line with a lower number has its outcome."""
        with self._changed:
            sent = self._delivery.lowest()
        lowest = [one for one in (sent, self._batcher.lowest()) if one is not None]
        return min([self._shelf.place, *lowest])

    def _tend(self) -> None:
        self._tended = self._clock()
        self._shelf.tend(self._frontier(), self._topic_id)

    def _follow_topic(self) -> bool:
        """Notice that the topic's name stands for another log than before, and send again what is kept; True when it does."""
        found = self._delivery.topic_id
        if found is None or found == self._topic_id:
            return False
        known, self._topic_id = self._topic_id, found
        if known is None:
            return False
        with self._changed:
            self.tally.topic_changes += 1
            self.positions.clear()
        kept = self._rewind()
        said = "what the outbox kept is sent again" if self._stored else "set emitter.outbox_dir to have events sent again"
        log.warning("event=topic_changed topic=%s was=%s is=%s kept=%d said=%r", self._topic, known, found, kept, said)
        return True

    def _rewind(self) -> int:
        """Go back to the oldest line that is kept; return how many lines that makes."""
        outbox = self._shelf.outbox
        if outbox is None:
            return 0
        kept = outbox.count(outbox.oldest, outbox.next)
        forget = self._frontier() >= self._shelf.unstored  # else some lines are in memory alone
        if forget:
            self._batcher.due(FOREVER)
            self._delivery.forget()
        with self._changed:
            tally = self.tally
            tally.again = max(0, kept - (tally.buffered - tally.queued))
            if forget:
                tally.held = tally.held_bytes = 0
            else:
                tally.again += tally.held
        self._shelf.rewind(forget=forget)
        self._tend()
        return kept

    def _settle(self, record: Record, offset: int | None, reason: str) -> None:
        """Take a record's outcome; called by Delivery with the lock held."""
        tally, count = self.tally, len(record.lines)
        tally.hold(-count, -sum(map(len, record.lines)))
        fresh = count - tally.repeats(count)
        if offset is None:
            tally.failed += fresh
            self._lost.append((record.lines, reason))
        else:
            tally.delivered += fresh
            self.positions[record.partition] = max(self.positions.get(record.partition, 0), offset + 1)
        if self._flushes or self._shelf.wants_room():
            self._news = True
            self._changed.notify()

    def _finish_flushes(self) -> None:
        if not self._flushes:
            return
        frontier = self._frontier()
        for mark in self._flushes:
            if mark.until <= frontier:
                mark.done.set()
        self._flushes = [mark for mark in self._flushes if not mark.done.is_set()]

    def _report_lost(self) -> None:
        with self._changed:
            lost = list(self._lost)
            self._lost.clear()
        if self._on_failure is None:
            return
        for lines, reason in lost:
            try:
                self._on_failure(lines, reason)
            except Exception:
                log.exception("event=on_failure_raised events=%d", len(lines))

    def _expire(self) -> None:
        """Fail what waited too long for a first connection; only without an outbox, where nothing else holds it."""
        limit = self._clock() - self._pace.timeout_s
        with self._changed:
            late = [one for one in self.queue if isinstance(one, Line) and one.at <= limit]
            self.queue = deque(one for one in self.queue if not (isinstance(one, Line) and one.at <= limit))
            self._hold(late)
        for record in _loose(late) + self._batcher.due(limit):
            self._delivery.fail(record, f"no broker answered at {self._bootstrap}")
        self._finish_flushes()
        self._report_lost()

    def _hold(self, lines: Sequence[Line]) -> None:
        """Count lines from queue to memory; needs the lock."""
        size = count_bytes(lines)
        self.tally.take(len(lines), size)
        self.tally.hold(len(lines), size)

    def _store_rest(self) -> None:
        """With an outbox, leave to the next process what came since the last look."""
        if not self._stored:
            return
        with self._changed:
            taken = list(self.queue)
            self.queue.clear()
        rest = taken[self._store(taken) :]
        with self._changed:
            self.queue.extendleft(reversed(rest))
        self._tend()

    def _stop(self, reason: str) -> None:
        """End: what is on disk stays there for the next process, anything else without an outcome counts as failed."""
        with self._changed:
            self.closing = True
            left = list(self.queue)
            self.queue.clear()
        rest = [one for one in left if isinstance(one, Line)]
        with self._changed:
            self._hold(rest)
        end = self._shelf.unstored if self._stored else FOREVER
        if self._stored:
            self._delivery.forget(self._shelf.unstored)
        open_records = [one for one in self._batcher.due(FOREVER) if one.first < end]
        self._delivery.close(open_records + _loose(self._shelf.empty(end)) + _loose(rest), reason)
        self._shelf.close()
        self._report_lost()
        for mark in (*self._flushes, *(one for one in left if isinstance(one, Mark))):
            mark.done.set()


def _cut(taken: Sequence[Line | Mark]) -> Iterator[list[Line] | Mark]:
    """Yield the lines in pieces that one frame of the outbox holds, and the marks between them."""
    piece: list[Line] = []
    size = 0
    for one in taken:
        if piece and (isinstance(one, Mark) or len(piece) >= PIECE_LINES or size + len(one.line) > PIECE_BYTES):
            yield piece
            piece, size = [], 0
        if isinstance(one, Mark):
            yield one
        else:
            piece.append(one)
            size += len(one.line)
    if piece:
        yield piece


def _loose(lines: Sequence[Line]) -> list[Record]:
    """Return one record of lines that never came to have a partition, none when there is no line."""
    return [Record(-1, b"", lines[0].at, [one.line for one in lines])] if lines else []
