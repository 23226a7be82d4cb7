"""The stand: broker, workers and producers of one torture as real processes, kept running and asked how far they are.

Everything happens on one thread, in `tend`, which callers call all the time while they wait. A process that ends by itself is
started again and noted; the report says so.
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
MAX_SURPRISES = 20
STALL_S = 120.0


class TortureError(RuntimeError):
    """The run cannot go on; the text says what stands still and how the logs end."""


class Producer:
    """One producer's process; started again it goes on after the last stage that is in its outbox."""

    def __init__(self, number: int, made: TortureLog, settings: ProducerSettings, files: StageFiles, log: Path) -> None:
        self.number = number
        self.made = made
        self.files = files
        self._settings = settings
        self._log = log
        self.child: Child | None = None

    @property
    def done(self) -> bool:
        """Whether all of its lines are acknowledged."""
        return self.files.progress(self.number).stages == self.made.stages

    def start(self) -> None:
        """Start the process."""
        made = {"seed": self.made.seed, "events": self.made.events, "producers": self.made.producers, "producer": self.number}
        options = [text for name, value in made.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "queryloop.torture.producer", *options, "--folder", str(self.files.folder)]
        self.child = Child(f"producer-{self.number}", command, self._log, to_environ(self._settings))

    def kill(self) -> None:
        """SIGKILL, now."""
        if self.child is not None:
            self.child.kill()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.child is not None:
            self.child.stop(grace_s=10.0)


@dataclass(frozen=True)
class Surprise:
    """A process that ended without being killed by us."""

    name: str
    code: int


class Stand:
    """The processes of one run: `start` workers and producers, `tend` or `wait`, and `stop` at the end."""

    def __init__(self, flow: Flow, workers: list[Worker], producers: list[Producer], partitions: int) -> None:
        self.flow = flow
        self.workers = workers
        self.producers = producers
        self.partitions = partitions
        self.surprises: list[Surprise] = []
        self._pause = threading.Event().wait
        self._moved: tuple[float, object] = (0.0, None)

    def start(self) -> None:
        """Start workers and producers."""
        for worker in self.workers:
            worker.start("first start")
        for producer in self.producers:
            producer.start()

    def settled(self, worker: Worker) -> bool:
        """Whether a worker has counted something since its start, or has its shards and nothing to count."""
        return worker.settled or (bool(worker.shards) and self.flow.idle)

    def shards(self) -> dict[int, dict[str, Any]]:
        """What the workers last said of the shards that they hold."""
        return {number: shard for worker in self.workers for number, shard in worker.shards.items()}

    def tend(self) -> None:
        """Keep everything running, take the workers' account, and open the gate as far as it may be."""
        for worker in self.workers:
            if worker.child is not None:
                self._keep_worker(worker)
        for producer in self.producers:
            self._keep_producer(producer)
        self.flow.look(self.shards())

    def wait(self, until: Callable[[], bool], what: str, timeout_s: float | None = None, poll_s: float = POLL_S) -> float:
        """Tend until it holds; the seconds it took. Raises TortureError when nothing is counted any more or the time is over."""
        began = time.monotonic()
        self._moved = (began, None)
        while not until():
            self.tend()
            self._pause(poll_s)
            self._refuse_standstill(what)
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise TortureError(f"not {what} after {timeout_s:g} s\n{self.tails()}")
        return time.monotonic() - began

    def rest(self, seconds: float) -> None:
        """Tend for so long."""
        until = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() >= until, "rested")

    def stop(self) -> list[str]:
        """Stop producers and workers in order; what did not end with code 0."""
        for producer in self.producers:
            producer.stop()
        codes = {worker.name: worker.stop() for worker in self.workers}
        return [f"{name} ended with code {code} when it was stopped" for name, code in codes.items() if code]

    def tails(self) -> str:
        """How the logs end."""
        children = [one.child for one in self.workers] + [one.child for one in self.producers]
        return "\n".join(f"--- {child.log}\n{child.tail()[-1500:]}" for child in children if child is not None)

    def _keep_worker(self, worker: Worker) -> None:
        code = worker.ended()
        if code is not None:
            self._note(worker.name, code)
            worker.start(f"ended by itself with code {code}")
        worker.look()

    def _keep_producer(self, producer: Producer) -> None:
        code = None if producer.child is None else producer.child.returncode
        if code is None or (code == 0 and producer.done):
            return
        self._note(f"producer-{producer.number}", code)
        producer.start()

    def _note(self, name: str, code: int) -> None:
        self.surprises.append(Surprise(name, code))
        if len(self.surprises) > MAX_SURPRISES:
            raise TortureError(f"{name} ended with code {code}, and {MAX_SURPRISES} times before one did\n{self.tails()}")

    def _refuse_standstill(self, what: str) -> None:
        state = self.flow.state()
        if state != self._moved[1]:
            self._moved = (time.monotonic(), state)
        elif time.monotonic() - self._moved[0] > STALL_S:
            raise TortureError(f"nothing was sent or counted for {STALL_S:g} s, waiting until {what}\n{self.tails()}")
