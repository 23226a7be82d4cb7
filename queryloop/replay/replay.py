"""Replay: a log file is sent again, in whatever format it is (`streams.importers.log_files`).

`replay` sends it to a broker that runs, as fast as possible or with its own time distances scaled; `replay_isolated` starts a
broker and a worker on temporary state, waits until every event is applied, and writes what was counted.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from queryloop.replay.places import find_places
from queryloop.replay.result_files import write_results, write_summary
from queryloop.replay.termination import terminable
from queryloop.up.worker_process import WorkerProcess, read_progress
from streams.brokers.broker import EmbeddedBroker, KafkaBroker
from streams.brokers.topics import KafkaSettings, create_topics
from streams.emitter.emitter import Counters, Emitter, EmitterSettings, QueueFull
from streams.emitter.record_batches import MAX_RECORD_BYTES
from streams.events.erasures import copy_erasures
from streams.importers.log_files import LogFile, LogFileError, read_log, session_of, time_of
from streams.runtime.processes import ProcessError, free_port
from streams.worker.settings import StreamsSettings

__all__ = ["LogFileError", "Pacing", "ProcessError", "ReplayError", "read_log", "replay", "replay_isolated"]

if TYPE_CHECKING:
    from streams.importers.mapping import Mapping

log = logging.getLogger(__name__)

FLUSH_S = 60.0
STALL_S = 120.0
POLL_S = 0.05
NEVER_S = 1e12
# The embedded broker admits a worker after half of its session timeout, Apache Kafka at once.
SESSION_S = {"embedded": 2.0, "kafka": 6.0}

BrokerKind = Literal["embedded", "kafka"]


class ReplayError(RuntimeError):
    """A replay that could not be finished; the text says why. Nothing is left running, no summary is written."""


@dataclass(frozen=True)
class Pacing:
    """When each line is sent: distances of event time divided by `speed`; None is as fast as possible."""

    speed: float | None = None
    clock: Callable[[], float] = time.monotonic
    wait: Callable[[float], object] = threading.Event().wait

    def apply(self, lines: Iterable[tuple[str, int | None, bytes]]) -> Iterator[tuple[str, bytes]]:
        """Yield (session_id, line), each when it is due; a line without a time, or out of order, is due at once."""
        began, first_us = self.clock(), None
        for session_id, ts_us, line in lines:
            if self.speed is not None and ts_us is not None:
                first_us = ts_us if first_us is None else first_us
                ahead = began + (ts_us - first_us) / 1_000_000 / self.speed - self.clock()
                if ahead > 0:
                    self.wait(ahead)
            yield session_id, line


FULL_SPEED = Pacing()


def replay(
    path: Path,
    bootstrap: str,
    kafka: KafkaSettings,
    emitter: EmitterSettings | None = None,
    pacing: Pacing = FULL_SPEED,
    mapping: Mapping | None = None,
) -> tuple[Counters, dict[int, int]]:
    """Send a log to the events topic of a running broker; topics are created where they are missing.

    Returns what was delivered and, for each partition, the offset after the last delivered record. Raises LogFileError (before
    anything is sent, where the file or its mapping cannot be used at all), TopicError and, when the broker did not accept every
    line, ReplayError.
    """
    with LogFile(path, mapping) as log_file:
        create_topics(bootstrap, kafka)
        return _send(log_file, kafka.at(bootstrap), emitter, pacing)


def _send(
    log_file: LogFile, kafka: KafkaSettings, emitter: EmitterSettings | None, pacing: Pacing
) -> tuple[Counters, dict[int, int]]:
    with _progress(bytes_read=True) as bars, Emitter(kafka, emitter, topic=kafka.topic) as sender:
        bar = bars.add_task("sent", total=log_file.size or None)
        for number, (session_id, line) in enumerate(pacing.apply(_sessions(log_file, timed=pacing.speed is not None)), 1):
            send_line(sender, line, session_id)
            if number % 1000 == 0:
                bars.update(bar, completed=log_file.position)
        if not sender.flush(FLUSH_S):
            raise ReplayError(f"the broker at {kafka.bootstrap} did not take every line: {sender.counters()}")
        return sender.counters(), sender.positions()


def replay_isolated(
    path: Path,
    as_of: Sequence[date],
    out: Path,
    broker: BrokerKind = "embedded",
    settings: StreamsSettings | None = None,
    emitter: EmitterSettings | None = None,
    mapping: Mapping | None = None,
) -> dict[str, Any]:
    """Replay a log on a broker and a worker of its own, write the result files into `out`, return the summary.

    Everything is kept (retention 0), so each day in `as_of` has its counts. No process and no temporary state is left, whatever
    happens. Raises ReplayError, ProcessError, LogFileError, BrokerError.
    """
    began = time.monotonic()
    # Opened first, so that a log or a mapping that cannot be used is refused before anything starts.
    with terminable(), LogFile(path, mapping) as log_file, tempfile.TemporaryDirectory(prefix="queryloop-replay-") as folder:
        data_dir = Path(folder)
        copy_erasures((settings or StreamsSettings()).data.dir, data_dir)
        with EmbeddedBroker() if broker == "embedded" else KafkaBroker(data_dir) as running:
            isolated = isolate(settings or StreamsSettings(), data_dir, running.bootstrap, broker)
            create_topics(running.bootstrap, isolated.kafka)
            lines = _count_log(log_file, isolated, emitter, data_dir / "worker.log")
        rules = isolated.rules
        locate = partial(find_places, path, mapping)
        totals = write_results(data_dir, isolated.kafka.partitions, rules, as_of, out, time.time(), locate)
    seconds = time.monotonic() - began
    summary = {"log": path.name, "as_of": list(as_of), "broker": broker, "lines": lines, **totals, "seconds": round(seconds, 3)}
    write_summary(out, summary)
    return summary


def isolate(settings: StreamsSettings, data_dir: Path, bootstrap: str, broker: BrokerKind) -> StreamsSettings:
    """Return settings for a worker with a broker, data folder and port of its own, which keeps everything and exports nothing."""
    # The embedded broker takes 3 s longer to admit a static member, which helps only several workers.
    kafka = settings.kafka.at_own_broker(bootstrap)
    worker = {"host": "127.0.0.1", "port": free_port(), "retention_days": 0, "static": broker == "kafka", "key": None}
    return settings.model_copy(
        update={
            "data": settings.data.model_copy(update={"dir": data_dir}),
            "kafka": kafka.model_copy(update={"broker": broker, "session_timeout_s": SESSION_S[broker]}),
            "worker": settings.worker.model_copy(update=worker),
            "lake": settings.lake.model_copy(update={"maturity_floor_s": NEVER_S}),
        }
    )


def _count_log(log_file: LogFile, settings: StreamsSettings, emitter: EmitterSettings | None, worker_log: Path) -> int:
    """Send the log while the worker starts, wait until all of it is applied, stop the worker; return the lines sent."""
    with WorkerProcess(settings, worker_log) as worker:
        counters, positions = _send(log_file, settings.kafka, emitter, FULL_SPEED)
        if counters.delivered:  # else there is nothing to wait for, and a worker that still starts need not end well
            _await_applied(worker, settings, positions, counters.delivered)
            worker.stop()
    return counters.delivered


def _await_applied(worker: WorkerProcess, settings: StreamsSettings, positions: dict[int, int], events: int) -> None:
    """Poll the worker until every shard has passed its position. Raises ReplayError when nothing is applied for STALL_S."""
    moved_at, last = time.monotonic(), -1
    with _progress() as bars:
        bar = bars.add_task("applied", total=events)
        while True:
            offsets, applied = read_progress(settings)
            if offsets and all(offsets.get(partition, 0) >= position for partition, position in positions.items()):
                return
            if applied > last:
                moved_at, last = time.monotonic(), applied
                bars.update(bar, completed=applied)
            if time.monotonic() - moved_at > STALL_S:
                raise ReplayError(f"the worker applied nothing for {STALL_S:g} s; its log ends:\n{worker.child.tail()}")
            worker.child.sleep(POLL_S)
            worker.keep_alive()


def _sessions(lines: Iterable[bytes], timed: bool) -> Iterator[tuple[str, int | None, bytes]]:
    for line in lines:
        yield session_of(line), time_of(line) if timed else None, line


def send_line(sender: Emitter, line: bytes, session_id: str) -> None:
    """Emit a line, waiting while the buffer is full. One longer than a record may be is truncated: it is too large anyway."""
    if len(line) > MAX_RECORD_BYTES:
        log.warning("event=line_cut bytes=%d kept=%d", len(line), MAX_RECORD_BYTES)
        line = line[:MAX_RECORD_BYTES]
    try:
        sender.emit_line(line, session_id)
    except QueueFull:
        if not sender.flush(FLUSH_S):
            raise
        sender.emit_line(line, session_id)


def _progress(bytes_read: bool = False) -> Progress:
    """Return a progress bar on standard error, hidden where that is no terminal."""
    console = Console(stderr=True)
    amount = DownloadColumn() if bytes_read else MofNCompleteColumn()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
