"""The emitter: takes events from any thread without ever waiting for Kafka, and delivers them at least once.

`emit` checks an event, puts it into a bounded queue and returns. One background thread (`streams.emitter.sender`) writes lines
to the outbox, if there is one, batches them by partition into records (`streams.emitter.record_batches`) and sends them
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
from pydantic import BaseModel, Field, model_validator

from streams.emitter.counters import Counters, FlushMarker
from streams.emitter.delivery import REQUEST_S, Connect, RecordFormat
from streams.emitter.outbox import Outbox, OutboxError
from streams.emitter.record_batches import MAX_RECORD_BYTES, Line
from streams.emitter.sender import OnFailure, Sender, SenderSettings
from streams.events.line_decoder import parse_line
from streams.events.schema import DEFAULT_LIMITS, Event, EventError, EventSettings, Reason, Reject, encode, printable

__all__ = ["Counters", "Emitter", "EmitterSettings", "OutboxError", "QueueFull", "checked_line"]


CLOSE_S = 5.0
"""Seconds that `close` waits for a broker when undelivered events stay on disk anyway."""


class QueueFull(RuntimeError):
    """The buffer is full; slow down, or drop the event knowingly."""


class EmitterSettings(BaseModel, frozen=True, extra="forbid"):
    """How events are batched and how long they are kept for a broker that does not answer (section `emitter`)."""

    batch_events: int = Field(default=100, ge=1, le=10_000, description="events in one Kafka record, at most")
    linger_ms: float = Field(default=50.0, ge=0, description="milliseconds an event waits for others, to be sent with them")
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

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        if self.linger_ms >= self.delivery_timeout_s * 1000:
            raise ValueError(
                f"emitter.linger_ms = {self.linger_ms:g} is no less than emitter.delivery_timeout_s = "
                f"{self.delivery_timeout_s:g} s: events would fail before they are sent"
            )
        return self


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
        self._condition = threading.Condition()
        self._outbox = open_outbox(settings)
        self._refuses = self._outbox is not None and settings.outbox_full == "refuse"
        pace = SenderSettings(
            settings.batch_events,
            settings.linger_ms / 1000,
            settings.delivery_timeout_s,
            settings.max_buffered_bytes,
            settings.outbox_sync_s,
            settings.outbox_full == "drop_oldest",
        )
        record_format = RecordFormat(settings.compression, settings.kafka_batch_bytes)
        self._sender = Sender(bootstrap, topic, pace, self._outbox, self._condition, clock, connect, record_format, on_failure)
        self._thread = threading.Thread(target=self._sender.run, name=f"emitter-{topic}", daemon=True)
        self._thread.start()

    def emit(self, event: Event) -> None:
        """Check and buffer one event. Raises EventError (no consumer would accept it), QueueFull, RuntimeError when closed."""
        self._enqueue(encode(event) if event.raw else checked_line(event, self._limits), event.session_id)

    def emit_line(self, line: bytes, session_id: str) -> None:
        """Buffer a line without checking it, as a replay must: the workers judge it. Raises as `emit` does."""
        if b"\n" in line:
            raise EventError(Reason.MALFORMED, "a line with a line break in it")
        self._enqueue(line, session_id)

    def flush(self, timeout: float | None = None) -> bool:
        """Send all buffered events; True when they were delivered within `timeout` seconds (None: the delivery timeout)."""
        mark = FlushMarker()
        with self._condition:
            failed = self._sender.counters.failed
            if self._sender.closing:
                return self._sender.counters.buffered == 0
            self._sender.queue.append(mark)
            self._condition.notify()
        in_time = mark.done.wait(self._settings.delivery_timeout_s + REQUEST_S if timeout is None else timeout)
        with self._condition:
            return in_time and self._sender.counters.failed == failed

    def store(self, timeout: float = 5.0) -> bool:
        """Wait until all events emitted so far are in the outbox, where they survive this process; True at once without one."""
        if self._outbox is None:
            return True
        mark = FlushMarker(until_stored=True)
        with self._condition:
            if self._sender.closing:
                return self._sender.counters.queued == 0
            self._sender.queue.append(mark)
            self._condition.notify()
        return mark.done.wait(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Flush, then stop. Undelivered events stay in the outbox, or without one count as failed.

        True when closing lost no event.
        """
        with self._condition:
            failed = self._sender.counters.failed
        if timeout is None and self._outbox is not None:
            timeout = CLOSE_S
        flushed = self.flush(timeout)
        with self._condition:
            self._sender.closing = True
            self._condition.notify()
        self._thread.join()
        with self._condition:
            return flushed or (self._outbox is not None and self._sender.counters.failed == failed)

    def counters(self) -> Counters:
        """Return the counters as they are now."""
        with self._condition:
            return self._sender.counters.snapshot(has_outbox=self._outbox is not None)

    def positions(self) -> dict[int, int]:
        """Return the offset after the last delivered record of each partition that was written to."""
        with self._condition:
            return dict(self._sender.positions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _enqueue(self, line: bytes, session_id: str) -> None:
        if len(line) > MAX_RECORD_BYTES:
            raise EventError(Reason.TOO_LARGE, f"line of {len(line)} bytes, a Kafka record holds {MAX_RECORD_BYTES}")
        sender, counters = self._sender, self._sender.counters
        with self._condition:
            if sender.closing:
                raise RuntimeError("the emitter is closed")
            self._refuse_when_full(len(line))
            sender.queue.append(Line(line, session_id, self._clock()))
            counters.emitted += 1
            counters.queued += 1
            counters.queued_bytes += len(line)
            if sender.idle or len(sender.queue) == self._settings.batch_events:
                sender.idle = False
                self._condition.notify()

    def _refuse_when_full(self, size: int) -> None:
        settings, counters = self._settings, self._sender.counters
        if self._outbox is None:
            waiting, bytes_waiting = counters.buffered, counters.queued_bytes + counters.memory_bytes
        else:
            waiting, bytes_waiting = counters.queued, counters.queued_bytes
        if self._refuses and counters.queued_bytes + size > counters.outbox_free_bytes:
            counters.refused += 1
            raise QueueFull(
                f"{counters.buffered} events wait for the broker at {self._bootstrap} "
                f"and the outbox {settings.outbox_dir} is full; emitter.outbox_max_bytes is {settings.outbox_max_bytes}"
            )
        if waiting < settings.max_buffered and bytes_waiting + size <= settings.max_buffered_bytes:
            return
        counters.refused += 1
        raise QueueFull(
            f"{waiting} events ({bytes_waiting} bytes) wait for the broker at {self._bootstrap}; "
            f"emitter.max_buffered is {settings.max_buffered}, emitter.max_buffered_bytes {settings.max_buffered_bytes}"
        )


def open_outbox(settings: EmitterSettings) -> Outbox | None:
    """Open the outbox that the settings name, None without one. Raises OutboxError."""
    if settings.outbox_dir is None:
        return None
    return Outbox(settings.outbox_dir, settings.outbox_max_bytes, settings.outbox_keep_s)


def checked_line(event: Event, limits: EventSettings = DEFAULT_LIMITS) -> bytes:
    """Return the line of an event when the decoder accepts it; raise EventError otherwise."""
    try:
        line = encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise EventError(Reason.INVALID, f"cannot be written as JSON: {printable(str(error))}") from error
    found = parse_line(line, limits)
    if isinstance(found, Reject):
        raise EventError(found.reason, found.detail)
    return line
