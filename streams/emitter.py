"""The emitter: takes events from any thread without ever waiting for Kafka, and delivers them at least once.

`emit` checks an event, puts it into a bounded buffer and returns. One background thread batches lines by partition into records
(`streams.records`) and gets them to the broker (`streams.delivery`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import msgspec
from pydantic import BaseModel, Field

from streams.decoder import parse_line
from streams.delivery import RECONNECT_S, REQUEST_S, Connect, Delivery
from streams.events import DEFAULT_LIMITS, Event, EventError, EventSettings, Reason, Reject, encode, printable
from streams.records import MAX_RECORD_BYTES, Batcher, Record, partition_of

log = logging.getLogger(__name__)

IDLE_S = 1.0
FOREVER = float("inf")


class QueueFull(RuntimeError):
    """The buffer holds as many events as it may; slow down, or drop the event knowingly."""


class EmitterSettings(BaseModel, frozen=True, extra="forbid"):
    """How events are batched and how long they are kept for a broker that does not answer (section `emitter`)."""

    batch_events: int = Field(default=100, ge=1, le=10_000, description="events in one Kafka record, at most")
    linger_ms: float = Field(default=50.0, ge=0, description="milliseconds an event waits for company")
    max_buffered: int = Field(default=100_000, ge=1, description="events not yet acknowledged, at most")
    max_buffered_bytes: int = Field(default=67_108_864, ge=1_000_000, description="bytes of them, at most")
    delivery_timeout_s: float = Field(default=30.0, gt=0, description="seconds after which an undelivered event counts as failed")


@dataclass(frozen=True)
class Counters:
    """Events so far: emitted = delivered + failed + buffered; `refused` were turned away by QueueFull and are in none of them."""

    emitted: int = 0
    delivered: int = 0
    failed: int = 0
    buffered: int = 0
    refused: int = 0


class _Line(NamedTuple):
    line: bytes
    session_id: str
    at: float


class _Flush:
    """A mark in the queue, done when every record that holds an earlier event has its outcome."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.pending: set[Record] = set()


class Emitter:
    """Emits events to a topic; thread-safe. Use it in a `with` block, or call `close`.

    `on_failure(lines, reason)` is called from the background thread for events that could not be delivered.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: EmitterSettings | None = None,
        *,
        topic: str = "events",
        limits: EventSettings = DEFAULT_LIMITS,
        on_failure: Callable[[Sequence[bytes], str], None] | None = None,
        connect: Connect | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bootstrap = bootstrap
        self._settings = settings or EmitterSettings()
        self._limits = limits
        self._on_failure = on_failure
        self._clock = clock
        self._changed = threading.Condition()
        # Guarded by _changed.
        self._queue: deque[_Line | _Flush] = deque()
        self._flushes: list[_Flush] = []
        self._lost: deque[tuple[list[bytes], str]] = deque()
        self._positions: dict[int, int] = {}
        self._emitted = self._delivered = self._failed = self._refused = self._bytes = 0
        self._idle = self._closing = False
        # The background thread's own.
        self._batcher = Batcher(self._settings.batch_events)
        timeout_s = self._settings.delivery_timeout_s
        self._delivery = Delivery(bootstrap, topic, timeout_s, self._settle, self._changed, clock, connect)
        self._thread = threading.Thread(target=self._run, name=f"emitter-{topic}", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Check and buffer one event. Raises EventError (no consumer would accept it), QueueFull, RuntimeError when closed."""
        self._put(encode(event) if event.raw else checked_line(event, self._limits), event.session_id)

    def emit_line(self, line: bytes, session_id: str) -> None:
        """Buffer a line as it is, well-formed or not, as a replay must: the agents judge it. Raises as `emit` does."""
        if b"\n" in line:
            raise EventError(Reason.MALFORMED, "a line with a line break in it")
        self._put(line, session_id)

    def flush(self, timeout: float | None = None) -> bool:
        """Send what is buffered now; True when all of it was delivered within `timeout` seconds (None: the delivery timeout)."""
        mark = _Flush()
        with self._changed:
            failed = self._failed
            if self._closing:
                return self._buffered == 0
            self._queue.append(mark)
            self._changed.notify()
        in_time = mark.done.wait(self._settings.delivery_timeout_s + REQUEST_S if timeout is None else timeout)
        with self._changed:
            return in_time and self._failed == failed

    def close(self, timeout: float | None = None) -> bool:
        """Flush, then stop; what is not delivered by then counts as failed. True when nothing was lost by closing."""
        flushed = self.flush(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        return flushed

    def counters(self) -> Counters:
        """Return the counts of this moment."""
        with self._changed:
            return Counters(self._emitted, self._delivered, self._failed, self._buffered, self._refused)

    def positions(self) -> dict[int, int]:
        """Return, for each partition written to, the offset after the last delivered record."""
        with self._changed:
            return dict(self._positions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def _buffered(self) -> int:
        return self._emitted - self._delivered - self._failed

    def _put(self, line: bytes, session_id: str) -> None:
        if len(line) > MAX_RECORD_BYTES:
            raise EventError(Reason.TOO_LARGE, f"line of {len(line)} bytes, a Kafka record holds {MAX_RECORD_BYTES}")
        with self._changed:
            if self._closing:
                raise RuntimeError("the emitter is closed")
            self._refuse_when_full(len(line))
            self._queue.append(_Line(line, session_id, self._clock()))
            self._emitted += 1
            self._bytes += len(line)
            if self._idle or len(self._queue) == self._settings.batch_events:
                self._idle = False
                self._changed.notify()

    def _refuse_when_full(self, size: int) -> None:
        settings = self._settings
        if self._buffered < settings.max_buffered and self._bytes + size <= settings.max_buffered_bytes:
            return
        self._refused += 1
        raise QueueFull(
            f"{self._buffered} events ({self._bytes} bytes) wait for the broker at {self._bootstrap}; "
            f"emitter.max_buffered is {settings.max_buffered}, emitter.max_buffered_bytes {settings.max_buffered_bytes}"
        )

    def _run(self) -> None:
        reason = "closed before delivery"
        try:
            while not self._closing:
                self._cycle()
        except Exception as error:
            log.exception("event=emitter_stopped action=%r", "this is a defect: restart the process and report it")
            reason = f"the emitter stopped: {error!r}"
        finally:
            self._give_up(reason)

    def _cycle(self) -> None:
        ready = self._delivery.turn()
        self._report_lost()
        if not ready:
            self._expire()
            with self._changed:
                self._changed.wait_for(lambda: self._closing, RECONNECT_S)
            return
        for item in self._take():
            if isinstance(item, _Flush):
                self._begin_flush(item)
            elif full := self._batcher.add(item.line, item.session_id, self._partition(item), item.at):
                self._delivery.send(full)
        for record in self._batcher.due(self._clock() - self._settings.linger_ms / 1000):
            self._delivery.send(record)

    def _partition(self, item: _Line) -> int:
        return partition_of(item.session_id, self._delivery.partitions)

    def _take(self) -> list[_Line | _Flush]:
        """Wait until there is something to do or an open record has lingered, and take the queue."""
        began = self._batcher.oldest()
        with self._changed:
            if not self._has_work():
                self._idle = began is None
                lingers = IDLE_S if began is None else began + self._settings.linger_ms / 1000 - self._clock()
                self._changed.wait(max(0.0, lingers))
                self._idle = False
            taken = list(self._queue)
            self._queue.clear()
        return taken

    def _has_work(self) -> bool:
        full = len(self._queue) >= self._settings.batch_events
        return full or self._closing or self._delivery.troubled or any(isinstance(one, _Flush) for one in self._queue)

    def _begin_flush(self, mark: _Flush) -> None:
        for record in self._batcher.due(FOREVER):
            self._delivery.send(record)
        with self._changed:
            mark.pending = set(self._delivery.unsettled)
            self._flushes.append(mark)
            self._finish_flushes()

    def _settle(self, record: Record, offset: int | None, reason: str) -> None:
        """Take a record's outcome; called by Delivery with the lock held."""
        self._bytes -= sum(map(len, record.lines))
        if offset is None:
            self._failed += len(record.lines)
            self._lost.append((record.lines, reason))
        else:
            self._delivered += len(record.lines)
            self._positions[record.partition] = max(self._positions.get(record.partition, 0), offset + 1)
        for mark in self._flushes:
            mark.pending.discard(record)
        self._finish_flushes()

    def _finish_flushes(self) -> None:
        for mark in self._flushes:
            if not mark.pending:
                mark.done.set()
        self._flushes = [mark for mark in self._flushes if mark.pending]

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
        """Fail what waited too long for a first connection."""
        limit = self._clock() - self._settings.delivery_timeout_s
        with self._changed:
            late = [one for one in self._queue if isinstance(one, _Line) and one.at <= limit]
            self._queue = deque(one for one in self._queue if not (isinstance(one, _Line) and one.at <= limit))
        for record in _loose(late) + self._batcher.due(limit):
            self._delivery.fail(record, f"no broker answered at {self._bootstrap}")
        self._report_lost()

    def _give_up(self, reason: str) -> None:
        """Count as failed whatever has no outcome when the thread ends."""
        with self._changed:
            self._closing = True
            left = list(self._queue)
            self._queue.clear()
        rest = _loose([one for one in left if isinstance(one, _Line)])
        self._delivery.close(self._batcher.due(FOREVER) + rest, reason)
        self._report_lost()
        for mark in left:
            if isinstance(mark, _Flush):
                mark.done.set()


def checked_line(event: Event, limits: EventSettings = DEFAULT_LIMITS) -> bytes:
    """Return the line of an event that the decoder accepts; raise EventError for any other."""
    try:
        line = encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise EventError(Reason.INVALID, f"cannot be written as JSON: {printable(str(error))}") from error
    found = parse_line(line, limits)
    if isinstance(found, Reject):
        raise EventError(found.reason, found.detail)
    return line


def _loose(lines: Sequence[_Line]) -> list[Record]:
    """Return one record of lines that never came to have a partition, none when there is no line."""
    return [Record(-1, b"", lines[0].at, [one.line for one in lines])] if lines else []
