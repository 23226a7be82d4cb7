"""The harness: workers and producers of one torture run as real processes, kept running and asked for their progress.

Everything happens on one thread, in `poll`, which callers call all the time while they wait. A process that ends by itself is
started again and named in the report.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queryloop.torture.flow import Flow
from queryloop.torture.generated_log import TortureLog
from queryloop.torture.producer import ProducerSettings
from queryloop.torture.stage_files import StageFiles
from queryloop.torture.workers import Worker
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child

POLL_S = 0.02
MAX_UNEXPECTED_EXITS = 20
STALL_S = 120.0


class TortureError(RuntimeError):
    """The run cannot go on; the text says what does not happen and how the logs end."""


class Producer:
    """One producer's process; restarted it goes on after the last stage that is in its outbox."""

    def __init__(self, number: int, generated: TortureLog, settings: ProducerSettings, files: StageFiles, log: Path) -> None:
        self.number = number
        self.generated = generated
        self.files = files
        self._settings = settings
        self._log = log
        self.child: Child | None = None

    @property
    def done(self) -> bool:
        """Whether all of its lines are acknowledged."""
        return self.files.progress(self.number).stages == self.generated.stages

    def start(self) -> None:
        """Start the process."""
        generated = {
            "seed": self.generated.seed,
            "events": self.generated.events,
            "producers": self.generated.producers,
            "producer": self.number,
        }
        options = [text for name, value in generated.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "queryloop.torture.producer", *options, "--folder", str(self.files.folder)]
        self.child = Child(f"producer-{self.number}", command, self._log, to_environ(self._settings))

    def kill(self) -> None:
        """Kill the process by SIGKILL."""
        if self.child is not None:
            self.child.kill()

    def stop(self) -> None:
        """Stop the process by SIGTERM and wait for its end."""
        if self.child is not None:
            self.child.stop(grace_s=10.0)


@dataclass(frozen=True)
class UnexpectedExit:
    """A process that ended by itself."""

    name: str
    code: int


class Harness:
    """The workers and producers of one run: `start` them, then `poll` or `wait`, and `stop` at the end."""

    def __init__(self, flow: Flow, workers: list[Worker], producers: list[Producer], partitions: int) -> None:
        self.flow = flow
        self.workers = workers
        self.producers = producers
        self.partitions = partitions
        self.unexpected_exits: list[UnexpectedExit] = []
        self._pause = threading.Event().wait
        self._moved: tuple[float, object] = (0.0, None)

    def start(self) -> None:
        """Start workers and producers."""
        for worker in self.workers:
            worker.start("first start")
        for producer in self.producers:
            producer.start()

    def is_counting(self, worker: Worker) -> bool:
        """Whether a worker has counted something since its start, or holds shards while there is nothing to count."""
        return worker.is_counting or (bool(worker.shards) and self.flow.idle)

    def shards(self) -> dict[int, dict[str, Any]]:
        """Return the last /status of each shard, by partition."""
        return {number: shard for worker in self.workers for number, shard in worker.shards.items()}

    def poll(self) -> None:
        """Restart what has ended, read the workers' /status, and open the gate as far as the limits allow."""
        for worker in self.workers:
            if worker.child is not None:
                self._keep_worker(worker)
        for producer in self.producers:
            self._keep_producer(producer)
        self.flow.update(self.shards())

    def wait(self, until: Callable[[], bool], what: str, timeout_s: float | None = None, poll_s: float = POLL_S) -> float:
        """Poll until a condition holds; return the seconds. Raises TortureError when nothing moves or the time is over."""
        began = time.monotonic()
        self._moved = (began, None)
        while not until():
            self.poll()
            self._pause(poll_s)
            self._check_stall(what)
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise TortureError(f"not {what} after {timeout_s:g} s\n{self.tails()}")
        return time.monotonic() - began

    def poll_for(self, seconds: float) -> None:
        """Poll for so many seconds."""
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= until, "done waiting")

    def stop(self) -> list[str]:
        """Stop producers, then workers; return a line for each that did not end with code 0."""
        for producer in self.producers:
            producer.stop()
        codes = {worker.name: worker.stop() for worker in self.workers}
        return [f"{name} ended with code {code} when it was stopped" for name, code in codes.items() if code]

    def tails(self) -> str:
        """Return the ends of all logs."""
        children = [one.child for one in self.workers] + [one.child for one in self.producers]
        return "\n".join(f"--- {child.log}\n{child.tail()[-1500:]}" for child in children if child is not None)

    def _keep_worker(self, worker: Worker) -> None:
        code = worker.ended()
        if code is not None:
            self._note(worker.name, code)
            worker.start(f"ended by itself with code {code}")
        worker.poll()

    def _keep_producer(self, producer: Producer) -> None:
        code = None if producer.child is None else producer.child.returncode
        if code is None or (code == 0 and producer.done):
            return
        self._note(f"producer-{producer.number}", code)
        producer.start()

    def _note(self, name: str, code: int) -> None:
        self.unexpected_exits.append(UnexpectedExit(name, code))
        if len(self.unexpected_exits) > MAX_UNEXPECTED_EXITS:
            raise TortureError(f"{name} ended with code {code}, and {MAX_UNEXPECTED_EXITS} times before one did\n{self.tails()}")

    def _check_stall(self, what: str) -> None:
        state = self.flow.state()
        if state != self._moved[1]:
            self._moved = (time.monotonic(), state)
        elif time.monotonic() - self._moved[0] > STALL_S:
            raise TortureError(f"nothing was sent or counted for {STALL_S:g} s, waiting until {what}\n{self.tails()}")
