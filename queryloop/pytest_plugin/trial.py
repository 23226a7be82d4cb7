"""One test's Queryloop: events are sent in, and the worker's counts are read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from queryloop.pytest_plugin.clock import Clock
from queryloop.pytest_plugin.counts import rate_windows, read_all
from queryloop.pytest_plugin.rows import Quarantined, Successor, Window
from queryloop.pytest_plugin.worker_pool import IsolatedWorker, Sections, WorkerPool
from queryloop.replay.replay import FLUSH_S, ReplayError, send_line
from queryloop.up.worker_process import read_progress
from streams.api.client import get_json
from streams.brokers.topics import end_offsets
from streams.emitter.emitter import Emitter, EmitterSettings
from streams.events.schema import Event, encode, make_event_id
from streams.importers.log_files import read_log, session_of
from streams.importers.mapping import read_mapping
from streams.runtime.clocks import set_clock

APPLY_S = 60.0
QUARANTINE_ROWS = 1000

AnyEvent = Mapping[str, Any] | Event | bytes | str
"""An event: its fields, one of `streams.events`, or its line of JSON."""


class Trial:
    """The value of the fixture `queryloop`. The worker starts when the first event is sent and stops at the end of the test.

    The product under test may emit to `bootstrap` and `topic` itself.
    """

    def __init__(self, workers: WorkerPool, broker: str, start_next: bool = False) -> None:
        self._workers = workers
        self._broker = broker
        self._start_next = start_next
        self._sections: Sections = {}
        self._worker: IsolatedWorker | None = None
        self._emitter: Emitter | None = None
        self.clock = Clock(self._set_time)

    @property
    def bootstrap(self) -> str:
        """host:port of the broker, for the product's own emitter."""
        return self._open().bootstrap

    @property
    def topic(self) -> str:
        """The topic of this test, for the product's own emitter."""
        return self._open().settings.kafka.topic

    def settings(self, **sections: dict[str, Any]) -> None:
        """Change settings of the worker, as in settings(worker={"session_gap_s": 60}), before the first event."""
        if self._worker is not None:
            raise RuntimeError(
                "queryloop.settings() must be called before the first event of a test, or use the marker: queryloop(...)"
            )
        for section, values in sections.items():
            self._sections[section] = self._sections.get(section, {}) | values

    def emit(self, event: AnyEvent) -> None:
        """Send one event. A mapping without `event_id` or `ts` gets a new id and the clock's time; text goes as it is."""
        self._send([self._line(event)])

    def replay(self, log: str | Path | Iterable[AnyEvent], mapping: str | Path | None = None) -> int:
        """Send a log and return how many lines it had: a file in any format of `queryloop replay`, or events as for `emit`.

        Raises LogFileError.
        """
        if isinstance(log, str | Path):
            return self._send(read_log(Path(log), None if mapping is None else read_mapping(Path(mapping))))
        return self._send(map(self._line, log))

    def wait_applied(self, timeout: float = APPLY_S) -> None:
        """Wait until the worker has applied everything that was sent. Raises ProcessError with the end of the worker's log."""
        worker = self._open()
        if self._emitter is not None and not self._emitter.flush(timeout):
            raise ReplayError(f"the broker at {worker.bootstrap} did not take every event: {self._emitter.counters()}")
        ends = end_offsets(worker.settings.kafka, worker.settings.kafka.topic)
        sent = {} if self._emitter is None else self._emitter.positions()
        wanted = {partition: max(end, sent.get(partition, 0)) for partition, end in ends.items()}

        def applied() -> bool:
            offsets, _ = read_progress(worker.settings)
            return all(offsets.get(partition, -1) >= end for partition, end in wanted.items())

        worker.child.wait_until(applied, timeout, f"past offsets {wanted}")

    def windows(self, as_of: date | str | None = None) -> list[Window]:
        """The counts over the 14 UTC days before `as_of`, by default the day after the clock's; waits for what was sent."""
        self.wait_applied()
        return rate_windows(read_all(self._open().settings), self._day(as_of))

    def cooccurrence(self, query: str, as_of: date | str | None = None) -> list[Successor]:
        """What users searched next after a query, the most frequent first, over the same days; waits for what was sent."""
        self.wait_applied()
        asked = {"query": query, "as_of": self._day(as_of).isoformat(), "limit": 10_000}
        answer = self._ask("/v1/successors", asked)
        return [Successor(answer["query"], row["next_query"], row["count"]) for row in answer["rows"]]

    def quarantine(self) -> list[Quarantined]:
        """What could not be used (the newest 1,000), by partition and place in the log; waits for what was sent."""
        self.wait_applied()
        answer = self._ask("/v1/quarantine", {"limit": QUARANTINE_ROWS})
        names = Quarantined.__slots__
        rows = [Quarantined(**{name: row[name] for name in names}) for row in answer["rows"]]
        return sorted(rows, key=lambda row: (row.partition, row.offset, row.line))

    def _ask(self, path: str, parameters: dict[str, Any]) -> dict[str, Any]:
        worker = self._open().settings.worker
        return get_json(worker.local_url + path, worker.key, parameters)

    def _open(self) -> IsolatedWorker:
        if self._worker is None:
            self._worker = self._workers.acquire(self._broker, self._sections)
            set_clock(self._worker.clock_file, self.clock.now())
            if self._start_next:
                self._workers.start_spare(self._broker)
        return self._worker

    def _send(self, lines: Iterable[bytes]) -> int:
        worker = self._open()
        if self._emitter is None:
            topic = worker.settings.kafka.topic
            self._emitter = Emitter(worker.settings.kafka, EmitterSettings(linger_ms=5.0), topic=topic)
        number = 0
        for number, line in enumerate(lines, 1):  # noqa: B007
            send_line(self._emitter, line, session_of(line))
        if not self._emitter.flush(FLUSH_S):
            raise ReplayError(f"the broker at {worker.bootstrap} did not take every event: {self._emitter.counters()}")
        return number

    def _line(self, event: AnyEvent) -> bytes:
        if isinstance(event, bytes | str):
            return event.encode() if isinstance(event, str) else event
        if isinstance(event, Event):
            return encode(event)
        if not isinstance(event, Mapping):
            kind = type(event).__name__
            raise TypeError(
                f"an event is a mapping of its fields, one of streams.events, or its line as text or bytes, not {kind}"
            )
        return json.dumps({"event_id": make_event_id(), "ts": self.clock.now(), **event}, ensure_ascii=False).encode()

    def _set_time(self, seconds: float) -> None:
        if self._worker is not None:
            self.wait_applied()
            set_clock(self._worker.clock_file, seconds)

    def _day(self, as_of: date | str | None) -> date:
        if as_of is None:
            return self.clock.today() + timedelta(days=1)
        if isinstance(as_of, datetime):
            return as_of.date()
        return date.fromisoformat(as_of) if isinstance(as_of, str) else as_of

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._emitter is not None:
            self._emitter.close(FLUSH_S)
        if self._worker is not None:
            self._workers.release(self._worker)
