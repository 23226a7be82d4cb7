"""The emitter: takes events from any thread without ever waiting for Kafka, and delivers them at least once.

`emit` checks an event, puts it into a bounded queue and returns. One background thread (`streams.emitter.sender`) writes lines
to the outbox, if there is one, batches them by partition into records (`streams.emitter.record_batches`) and gets them
to the broker (`streams.emitter.delivery`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
from pydantic import BaseModel, Field

from streams.emitter.counters import Counters, Mark
from streams.emitter.delivery import REQUEST_S, Connect, Wire
from streams.emitter.outbox import Outbox, OutboxError
from streams.emitter.record_batches import MAX_RECORD_BYTES, Line
from streams.emitter.sender import Courier, OnFailure, Pace
from streams.events.line_decoder import parse_line
from streams.events.schema import DEFAULT_LIMITS, Event, EventError, EventSettings, Reason, Reject, encode, printable

__all__ = ["Counters", "Emitter", "EmitterSettings", "OutboxError", "QueueFull", "checked_line"]


CLOSE_S = 5.0
"""Seconds that closing waits for a broker when what is left stays on disk anyway."""


class QueueFull(RuntimeError):
    """As many events wait as may; slow down, or drop the event knowingly."""


class EmitterSettings(BaseModel, frozen=True, extra="forbid"):
    """How events are batched and how long they are kept for a broker that does not answer (section `emitter`)."""

    batch_events: int = Field(default=100, ge=1, le=10_000, description="events in one Kafka record, at most")
    linger_ms: float = Field(default=50.0, ge=0, description="milliseconds an event waits for company")
    max_buffered: int = Field(
        default=100_000, ge=1, description="events in memory and not yet acknowledged (with an outbox: not yet on disk), at most"
    )
    max_buffered_bytes: int = Field(
        default=67_108_864, ge=1_000_000, description="bytes of them, at most; with an outbox, bytes on the way to the broker too"
    )
    delivery_timeout_s: float = Field(
        default=30.0, gt=0, description="seconds after which an undelivered event counts as failed; never with an outbox"
    )
    compression: Literal["none", "gzip"] = Field(
        default="none", description="compression of records; gzip saves network and disk for three times the processor time"
    )
    kafka_batch_bytes: int = Field(
        default=0,
        ge=0,
        le=900_000,
        description="bytes of one Kafka batch of several records; 0: each record is one (embedded broker)",
    )
    outbox_dir: Path | None = Field(
        default=None, description="folder where events wait on disk until delivered, one process a folder; unset: in memory only"
    )
    outbox_max_bytes: int = Field(default=1_073_741_824, ge=1_000_000, description="bytes of the outbox, at most")
    outbox_keep_s: float = Field(
        default=86_400.0, ge=0, description="seconds a delivered event is kept for a topic that is lost, within outbox_max_bytes"
    )
    outbox_full: Literal["drop_oldest", "refuse"] = Field(
        default="drop_oldest", description="when the outbox is full of undelivered events: drop the oldest, or refuse new ones"
    )
    outbox_sync_s: float = Field(default=1.0, gt=0, description="seconds between two fsyncs, and between two updates of its mark")


class Emitter:
    """Emits events to a topic; thread-safe. Use it in a `with` block, or call `close`.

    `on_failure(lines, reason)` is called from the background thread for events that could not be delivered. Raises OutboxError
    when `emitter.outbox_dir` cannot be used or another process uses it.
    """

    def __init__(
        self,
        bootstrap: str,
        settings: EmitterSettings | None = None,
        *,
        topic: str = "events",
        limits: EventSettings = DEFAULT_LIMITS,
        on_failure: OnFailure | None = None,
        connect: Connect | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bootstrap = bootstrap
        self._settings = settings = settings or EmitterSettings()
        self._limits = limits
        self._clock = clock
        self._changed = threading.Condition()
        self._outbox = open_outbox(settings)
        self._refuses = self._outbox is not None and settings.outbox_full == "refuse"
        pace = Pace(
            settings.batch_events,
            settings.linger_ms / 1000,
            settings.delivery_timeout_s,
            settings.max_buffered_bytes,
            settings.outbox_sync_s,
            settings.outbox_full == "drop_oldest",
        )
        wire = Wire(settings.compression, settings.kafka_batch_bytes)
        self._courier = Courier(bootstrap, topic, pace, self._outbox, self._changed, clock, connect, wire, on_failure)
        self._thread = threading.Thread(target=self._courier.run, name=f"emitter-{topic}", daemon=True)
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
        mark = Mark()
        with self._changed:
            failed = self._courier.tally.failed
            if self._courier.closing:
                return self._courier.tally.buffered == 0
            self._courier.queue.append(mark)
            self._changed.notify()
        in_time = mark.done.wait(self._settings.delivery_timeout_s + REQUEST_S if timeout is None else timeout)
        with self._changed:
            return in_time and self._courier.tally.failed == failed

    def store(self, timeout: float = 5.0) -> bool:
        """Wait until all events emitted so far are in the outbox, where they survive this process; at once True without one."""
        if self._outbox is None:
            return True
        mark = Mark(stored=True)
        with self._changed:
            if self._courier.closing:
                return self._courier.tally.queued == 0
            self._courier.queue.append(mark)
            self._changed.notify()
        return mark.done.wait(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Flush, then stop. What is not delivered by then stays in the outbox, or without one counts as failed.

        True when nothing was lost by closing.
        """
        with self._changed:
            failed = self._courier.tally.failed
        if timeout is None and self._outbox is not None:
            timeout = CLOSE_S
        flushed = self.flush(timeout)
        with self._changed:
            self._courier.closing = True
            self._changed.notify()
        self._thread.join()
        with self._changed:
            return flushed or (self._outbox is not None and self._courier.tally.failed == failed)

    def counters(self) -> Counters:
        """Return the counts of this moment."""
        with self._changed:
            return self._courier.tally.read(stored=self._outbox is not None)

    def positions(self) -> dict[int, int]:
        """Return, for each partition written to, the offset after the last delivered record."""
        with self._changed:
            return dict(self._courier.positions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _put(self, line: bytes, session_id: str) -> None:
        if len(line) > MAX_RECORD_BYTES:
            raise EventError(Reason.TOO_LARGE, f"line of {len(line)} bytes, a Kafka record holds {MAX_RECORD_BYTES}")
        courier, tally = self._courier, self._courier.tally
        with self._changed:
            if courier.closing:
                raise RuntimeError("the emitter is closed")
            self._refuse_when_full(len(line))
            courier.queue.append(Line(line, session_id, self._clock()))
            tally.emitted += 1
            tally.queued += 1
            tally.queued_bytes += len(line)
            if courier.idle or len(courier.queue) == self._settings.batch_events:
                courier.idle = False
                self._changed.notify()

    def _refuse_when_full(self, size: int) -> None:
        settings, tally = self._settings, self._courier.tally
        if self._outbox is None:
            waiting, bytes_waiting = tally.buffered, tally.queued_bytes + tally.held_bytes
        else:
            waiting, bytes_waiting = tally.queued, tally.queued_bytes
        if self._refuses and tally.queued_bytes + size > tally.room:
            tally.refused += 1
            raise QueueFull(
                f"{tally.buffered} events wait for the broker at {self._bootstrap} and the outbox {settings.outbox_dir} is full; "
                f"emitter.outbox_max_bytes is {settings.outbox_max_bytes}"
            )
        if waiting < settings.max_buffered and bytes_waiting + size <= settings.max_buffered_bytes:
            return
        tally.refused += 1
        raise QueueFull(
            f"{waiting} events ({bytes_waiting} bytes) wait for the broker at {self._bootstrap}; "
            f"emitter.max_buffered is {settings.max_buffered}, emitter.max_buffered_bytes {settings.max_buffered_bytes}"
        )


def open_outbox(settings: EmitterSettings) -> Outbox | None:
    """The outbox that the settings name, if any. Raises OutboxError."""
    if settings.outbox_dir is None:
        return None
    return Outbox(settings.outbox_dir, settings.outbox_max_bytes, settings.outbox_keep_s)


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
