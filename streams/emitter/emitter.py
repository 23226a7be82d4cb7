"""The emitter: takes events from any thread without ever waiting for Kafka, and delivers them at least once.

`emit` checks an event, puts it into a bounded queue and returns. One background thread (`streams.emitter.sender`) writes lines
to the outbox, if there is one, batches them by partition into records (`streams.emitter.record_batches`) and sends them
to the broker (`streams.emitter.delivery`). What belongs to one process is its `streams.emitter.emitter_run`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec
from pydantic import BaseModel, Field, model_validator

from streams.brokers.connection import Address, bootstrap_of, checked_bootstrap
from streams.emitter.counters import Counters
from streams.emitter.delivery import Connect, RecordFormat
from streams.emitter.emitter_run import EmitterRun, RunSettings
from streams.emitter.left_outboxes import FORKED, take_left
from streams.emitter.outbox import Outbox, OutboxError, OutboxInUseError
from streams.emitter.process_hooks import add_emitter, add_run, remove_run
from streams.emitter.record_batches import MAX_RECORD_BYTES, Line
from streams.emitter.sender import OnFailure, SenderSettings
from streams.events.line_decoder import parse_line
from streams.events.schema import DEFAULT_LIMITS, BaseEvent, Event, EventError, EventSettings, Reason, Reject, encode, printable

__all__ = ["Counters", "Emitter", "EmitterSettings", "OutboxError", "QueueFull", "checked_line"]


MAX_FORKS = 1000
"""Forked children with an outbox at a time, at most."""


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
        default="refuse",
        description="when the outbox is full of undelivered events: refuse new ones, or drop the oldest, acknowledged or not",
    )
    outbox_sync: Literal["store", "interval"] = Field(
        default="store",
        description="store: what is acknowledged survives a loss of power; interval: a kill of the process, with fsync later",
    )
    outbox_sync_s: float = Field(default=1.0, gt=0, description="seconds between two fsyncs, and between two updates of its mark")
    exit_timeout_s: float = Field(
        default=5.0, ge=0, description="seconds that a process which ends without close waits for its events to be delivered"
    )

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

    `bootstrap` is host:port of a plaintext listener, or the settings of a connection (`KafkaConnection`) with TLS or a login.
    In a forked child it starts afresh at the first event, with an outbox of its own in a subfolder. `on_failure(lines, reason)`
    is called from the background thread for events that could not be delivered. Raises OutboxError when `emitter.outbox_dir`
    cannot be used or another process uses it, ValueError for an address that is no host:port.
    """

    def __init__(
        self,
        bootstrap: Address,
        settings: EmitterSettings | None = None,
        *,
        topic: str = "events",
        limits: EventSettings = DEFAULT_LIMITS,
        on_failure: OnFailure | None = None,
        connect: Connect | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        checked_bootstrap(bootstrap_of(bootstrap))
        self._settings = settings = settings or EmitterSettings()
        self._limits = limits
        self._clock = clock
        self._refuses = settings.outbox_dir is not None and settings.outbox_full == "refuse"
        pace = SenderSettings(
            settings.batch_events,
            settings.linger_ms / 1000,
            settings.delivery_timeout_s,
            settings.max_buffered_bytes,
            settings.outbox_sync_s,
            settings.outbox_full == "drop_oldest",
            settings.outbox_sync == "store",
        )
        record_format = RecordFormat(settings.compression, settings.kafka_batch_bytes)
        self._run_settings = RunSettings(
            bootstrap, topic, pace, record_format, settings.exit_timeout_s, on_failure, connect, clock
        )
        self._start_lock = threading.Lock()
        self._closed = False
        self._run: EmitterRun | None = None
        self._run = self._start(open_outbox(settings))
        add_emitter(self)

    def emit(self, event: Event) -> None:
        """Check and buffer one event. Raises EventError (no consumer would accept it), QueueFull, RuntimeError when closed."""
        if not isinstance(event, BaseEvent):
            raise TypeError(f"emit takes a Query, Impression or Click of streams.events, not {type(event).__name__}")
        self._enqueue(encode(event) if event.raw else checked_line(event, self._limits), event.session_id)

    def emit_line(self, line: bytes, session_id: str) -> None:
        """Buffer a line without checking it, as a replay must: the workers judge it. Raises as `emit` does."""
        if b"\n" in line:
            raise EventError(Reason.MALFORMED, "a line with a line break in it")
        self._enqueue(line, session_id)

    def flush(self, timeout: float | None = None) -> bool:
        """Send all buffered events; True when they were delivered within `timeout` seconds (None: the delivery timeout)."""
        return self._run is None or self._run.flush(timeout)

    def store(self, timeout: float = 5.0) -> bool:
        """Wait until all events emitted so far are safe: in the outbox, or acknowledged by Kafka (always the latter without one).

        False when that is not so within `timeout` seconds, and at once when neither the disk nor Kafka can take them. They are
        still delivered when that becomes possible; a caller that is told False sends them again later, and they count once.
        """
        return self._run is None or self._run.store(timeout)

    def close(self, timeout: float | None = None) -> bool:
        """Flush, then stop. Undelivered events stay in the outbox, or without one count as failed.

        True when closing lost no event.
        """
        self._closed = True
        if (run := self._run) is None:
            return True
        kept = run.close(timeout)
        remove_run(run)
        return kept

    def counters(self) -> Counters:
        """Return the counters as they are now, of this process: a forked child begins at zero."""
        return Counters() if self._run is None else self._run.counters()

    def positions(self) -> dict[int, int]:
        """Return the offset after the last delivered record of each partition that was written to."""
        return {} if self._run is None else self._run.positions()

    def leave_parent(self) -> None:
        """In a forked child: leave the parent's events and its outbox to the parent. Called by itself at the fork."""
        if self._run is not None:
            self._closed = self._closed or self._run.sender.closing
        self._start_lock = threading.Lock()
        self._run = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _enqueue(self, line: bytes, session_id: str) -> None:
        if len(line) > MAX_RECORD_BYTES:
            raise EventError(Reason.TOO_LARGE, f"line of {len(line)} bytes, a Kafka record holds {MAX_RECORD_BYTES}")
        run = self._run or self._start_in_child()
        with run.condition:
            if run.sender.closing:
                raise RuntimeError("the emitter is closed")
            self._refuse_when_full(run, len(line))
            run.put(Line(line, session_id, self._clock()), self._settings.batch_events)

    def _start(self, outbox: Outbox | None) -> EmitterRun:
        run = EmitterRun(self._run_settings, outbox)
        weakref.finalize(self, run.abandon).atexit = False
        add_run(run)
        return run

    def _start_in_child(self) -> EmitterRun:
        """Begin to work in a process that was forked with this emitter. Raises OutboxError, RuntimeError when closed."""
        with self._start_lock:
            if self._closed:
                raise RuntimeError("the emitter is closed")
            if self._run is None:
                self._run = self._start(open_forked_outbox(self._settings))
            return self._run

    def _refuse_when_full(self, run: EmitterRun, size: int) -> None:
        settings, counters = self._settings, run.sender.counters
        if run.outbox is None:
            waiting, bytes_waiting = counters.buffered, counters.queued_bytes + counters.memory_bytes
        else:
            waiting, bytes_waiting = counters.queued, counters.queued_bytes
        if self._refuses and counters.queued_bytes + size > counters.outbox_free_bytes:
            counters.refused += 1
            raise QueueFull(
                f"{counters.buffered} events wait for the broker at {bootstrap_of(run.settings.address)} "
                f"and the outbox {settings.outbox_dir} is full; emitter.outbox_max_bytes is {settings.outbox_max_bytes}"
            )
        if waiting < settings.max_buffered and bytes_waiting + size <= settings.max_buffered_bytes:
            return
        counters.refused += 1
        disk = f" and the outbox {settings.outbox_dir} fails ({counters.disk_error})" if counters.disk_error else ""
        raise QueueFull(
            f"{waiting} events ({bytes_waiting} bytes) wait for the broker at {bootstrap_of(run.settings.address)}{disk}; "
            f"emitter.max_buffered is {settings.max_buffered}, emitter.max_buffered_bytes {settings.max_buffered_bytes}"
        )


def open_outbox(settings: EmitterSettings) -> Outbox | None:
    """Open the outbox that the settings name, with what forked children left in theirs; None without one. Raises OutboxError."""
    if settings.outbox_dir is None:
        return None
    outbox = Outbox(settings.outbox_dir, settings.outbox_max_bytes, settings.outbox_keep_s)
    take_left(outbox)
    return outbox


def open_forked_outbox(settings: EmitterSettings) -> Outbox | None:
    """Open the first of the outbox's subfolders fork-0, fork-1, ... that no process uses. Raises OutboxError.

    The lowest are taken first, so that events which a killed child left are sent by the next children.
    """
    if settings.outbox_dir is None:
        return None
    for number in range(MAX_FORKS):
        with suppress(OutboxInUseError):
            return Outbox(settings.outbox_dir / f"{FORKED}{number}", settings.outbox_max_bytes, settings.outbox_keep_s)
    raise OutboxError(f"{MAX_FORKS} processes already use subfolders of {settings.outbox_dir}: set emitter.outbox_dir")


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
