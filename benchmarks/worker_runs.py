"""Our side of a benchmark: the real worker process (`python -m streams`) on a fresh data folder, watched through its own HTTP."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.probes.usage import Usage, read_threads, read_usage
from queryloop.up.worker_process import WorkerProcess, read_status
from streams.api.client import get
from streams.brokers.topics import KafkaSettings
from streams.runtime.processes import ProcessError, free_port
from streams.runtime.settings import DataSettings
from streams.worker.settings import StreamsSettings, WorkerSettings

STALL_S = 60.0
POLL_S = 0.05


@dataclass(frozen=True)
class Site:
    """The running broker of a benchmark, and the folder for the data of a run."""

    bootstrap: str
    pid: int
    partitions: int
    folder: Path


@dataclass(frozen=True)
class Topic:
    """A topic with events in it."""

    name: str
    events: int
    lines: int
    """Events in each of its records."""


@dataclass(frozen=True)
class Progress:
    """A worker's /status at a moment of the wall clock: events applied, its shards' offsets, and whether all is on disk."""

    at: float
    events: int
    offsets: dict[int, int]
    is_written: bool = True


@dataclass(frozen=True)
class Rate:
    """One measured run from the first applied batch seen to the last; CPU seconds are of that time too."""

    events: int
    seconds: float
    whole_s: float
    """From the start of the process to the last event applied."""
    worker_cpu_s: float
    broker_cpu_s: float
    threads_s: tuple[float, ...] = ()
    """CPU seconds of the worker's threads, busiest first, which bounds the rate where cores are free."""

    @property
    def per_s(self) -> float:
        """Events a second, steady."""
        return self.events / self.seconds


class Worker:
    """A running worker, asked over its HTTP."""

    def __init__(self, process: WorkerProcess, settings: StreamsSettings) -> None:
        self.process = process
        self.pid = process.child.pid
        self.began = time.monotonic()
        self._settings = settings

    @property
    def url(self) -> str:
        """The URL of its HTTP."""
        return self._settings.worker.local_url

    def ask(self) -> Progress | None:
        """Its progress now; None while it does not answer (it is starting, or too busy for `timeout`)."""
        status = read_status(self._settings, timeout_s=10.0)
        if status is None:
            return None
        shards = status["shards"]
        offsets = {shard["partition"]: shard["next_offset"] or 0 for shard in shards}
        is_written = all(shard["written_offset"] == shard["next_offset"] for shard in shards)
        return Progress(time.time(), sum(shard["events"] for shard in shards), offsets, is_written)

    def write(self) -> None:
        """Let it write what it has applied, which it does before every read: else the last of a log waits for a second."""
        get(f"{self.url}/v1/delays", None, timeout_s=STALL_S)

    def watch(self, poll_s: float = POLL_S) -> Iterator[Progress]:
        """Yield its progress for ever. Raises ProcessError when it ends or applies nothing for STALL_S."""
        moved, last = time.monotonic(), -1
        while True:
            if (seen := self.ask()) is not None:
                if seen.events > last:
                    moved, last = time.monotonic(), seen.events
                yield seen
            if self.process.child.sleep(poll_s) is not None or time.monotonic() - moved > STALL_S:
                raise ProcessError(f"the worker applied {last} events and then none; its log ends:\n{self.process.child.tail()}")


@contextmanager
def running_worker(site: Site, topic: str, data: Path | None = None) -> Iterator[Worker]:
    """Run a worker on a topic, in a group of its own; its data folder is new and removed afterwards unless `data` names one."""
    name = uuid.uuid4().hex[:8]
    folder = data or site.folder / f"data-{name}"
    settings = StreamsSettings(
        data=DataSettings(dir=folder),
        kafka=KafkaSettings(
            bootstrap=site.bootstrap, topic=topic, partitions=site.partitions, group=f"bench-{name}", session_timeout_s=6.0
        ),
        worker=WorkerSettings(port=free_port()),
    )
    try:
        with WorkerProcess(settings, site.folder / f"worker-{name}.log") as process:
            yield Worker(process, settings)
            process.stop()
    finally:
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)


def measure_worker(site: Site, topic: Topic, data: Path | None = None, already: int = 0) -> Rate:
    """Time a worker that applies a whole topic, until all is on disk. `already` events are in the shards of `data` before."""
    with running_worker(site, topic.name, data) as worker:
        first: tuple[Progress, Usage, Usage, dict[int, float]] | None = None
        for seen in worker.watch():
            if first is None and seen.events > already:
                first = seen, read_usage(worker.pid), read_usage(site.pid), read_threads(worker.pid)
            if first is not None and seen.events >= already + topic.events:
                if seen.is_written:
                    break
                worker.write()
        assert first is not None
        began, mine, broker, threads = first
        now, now_broker = read_usage(worker.pid), read_usage(site.pid)
        if seen.events == began.events:
            raise ProcessError(f"all {topic.events} events were applied at the first look: take more of them")
        return Rate(
            seen.events - began.events,
            seen.at - began.at,
            now.at_s - worker.began,
            now.cpu_s - mine.cpu_s,
            now_broker.cpu_s - broker.cpu_s,
            tuple(sorted((cpu - threads.get(tid, 0.0) for tid, cpu in read_threads(worker.pid).items()), reverse=True)),
        )
