"""One emitter at work in one process: its queue, its thread, its outbox, and how it ends.

The emitter object that a product holds may live on in a forked child, where no thread runs and where locks, sockets and the
outbox belong to the parent. So all of these are here, and a child that emits gets a run of its own.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from streams.brokers.connection import Address
from streams.emitter.counters import Counters, FlushMarker, StoreMarker
from streams.emitter.delivery import REQUEST_S, Connect, RecordFormat
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line
from streams.emitter.sender import OnFailure, Sender, SenderSettings

CLOSE_S = 5.0
"""Seconds that closing waits for a broker when undelivered events stay on disk anyway."""
IMPORTED_BY_THREADS = ("streams.brokers.clients", "kafka.partitioner.default", "encodings.idna")
"""Modules that the threads import. A child that is forked in the midst of an import would wait for its lock for ever."""


@dataclass(frozen=True)
class RunSettings:
    """What a run needs beside its outbox; times in seconds. `exit_s`: how long the end of the process may wait for it."""

    address: Address
    topic: str
    pace: SenderSettings
    record_format: RecordFormat
    exit_s: float
    on_failure: OnFailure | None = None
    connect: Connect | None = None
    clock: Callable[[], float] = time.monotonic


class EmitterRun:
    """Starts the thread at once. Thread-safe."""

    def __init__(self, settings: RunSettings, outbox: Outbox | None) -> None:
        for module in IMPORTED_BY_THREADS:
            importlib.import_module(module)
        self.settings = settings
        self.outbox = outbox
        self.condition = threading.Condition()
        self.sender = Sender(
            settings.address,
            settings.topic,
            settings.pace,
            outbox,
            self.condition,
            settings.clock,
            settings.connect,
            settings.record_format,
            settings.on_failure,
        )
        self._process_id = os.getpid()
        self._thread = threading.Thread(target=self.sender.run, name=f"emitter-{settings.topic}", daemon=True)
        self._thread.start()

    def put(self, line: Line, full_at: int) -> None:
        """Queue a line, with the condition held; wake the thread if it is idle or the queue has reached `full_at` lines."""
        sender, counters = self.sender, self.sender.counters
        sender.queue.append(line)
        counters.emitted += 1
        counters.queued += 1
        counters.queued_bytes += len(line.line)
        if sender.idle or len(sender.queue) == full_at:
            sender.idle = False
            self.condition.notify()

    def flush(self, timeout: float | None) -> bool:
        """Send all queued events; return whether all were delivered within `timeout` seconds (None: the delivery timeout)."""
        mark = FlushMarker()
        with self.condition:
            failed = self.sender.counters.failed
            if self.sender.closing:
                return self.sender.counters.buffered == 0
            self.sender.queue.append(mark)
            self.condition.notify()
        in_time = mark.done.wait(self.settings.pace.timeout_s + REQUEST_S if timeout is None else timeout)
        with self.condition:
            return in_time and self.sender.counters.failed == failed

    def store(self, timeout: float) -> bool:
        """Return whether every event queued so far is on disk, or delivered, within `timeout` seconds."""
        mark = StoreMarker()
        with self.condition:
            is_open = not self.sender.closing
            if is_open:
                self.sender.queue.append(mark)
                self.sender.has_stores = True
                self.condition.notify()
        if is_open:
            return mark.done.wait(timeout) and mark.safe
        self._thread.join(timeout)
        return self.sender.lost_none

    def close(self, timeout: float | None) -> bool:
        """Flush, stop the thread and release the outbox; return whether no event was lost by that."""
        if timeout is None and self.outbox is not None:
            timeout = CLOSE_S
        with self.condition:
            failed = self.sender.counters.failed
        flushed = self.flush(timeout)
        with self.condition:
            self.sender.closing = True
            self.condition.notify()
        self._thread.join()
        with self.condition:
            kept = self.outbox is not None and self.sender.lost_none and self.sender.counters.failed == failed
            return flushed or kept

    def abandon(self) -> None:
        """Let the thread end by itself once it has delivered what it can: nobody holds the emitter any more. Never waits."""
        if self._process_id == os.getpid():
            with self.condition:
                self.sender.abandoned_at = self.settings.clock()
                self.condition.notify()

    def leave_to_parent(self) -> None:
        """In a forked child: close this process's handles of the outbox, and keep the copied producer from doing anything."""
        if self.outbox is not None:
            self.outbox.release()
        self.sender.leave_to_parent()

    def is_ended(self) -> bool:
        """Return whether the thread has ended."""
        return not self._thread.is_alive()

    def counters(self) -> Counters:
        """Return the counters as they are now."""
        with self.condition:
            return self.sender.counters.snapshot(has_outbox=self.outbox is not None)

    def positions(self) -> dict[int, int]:
        """Return the offset after the last delivered record of each partition that was written to."""
        with self.condition:
            return dict(self.sender.positions)
