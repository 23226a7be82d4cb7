"""The stand: broker, workers and producers of one torture as real processes, kept running and asked how far they are.

Everything happens on one thread, in `tend`, which callers call all the time while they wait. A process that ends by itself is
started again and noted; the report says so.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from queryloop.torture.log import TortureLog
from queryloop.torture.producer import ProducerSettings
from queryloop.torture.stage_files import Progress, StageFiles
from queryloop.torture.workers import Worker
from streams.environ import environ_of
from streams.processes import Child

POLL_S = 0.02
MAX_SURPRISES = 20
STALL_S = 120.0
APART_STAGES = 2
"""Stages between the producers at most, a fifth of a day: less than a click waits for its impression."""
AHEAD_STAGES = 16
"""Stages that the producers may be ahead of the slowest shard."""


class TortureError(RuntimeError):
    """The run cannot go on; the text says what stands still and how the logs end."""


class Producer:
    """One producer's process; started again it goes on at the stage it had not finished."""

    def __init__(self, number: int, made: TortureLog, settings: ProducerSettings, files: StageFiles, log: Path) -> None:
        self.number = number
        self.made = made
        self.files = files
        self._settings = settings
        self._log = log
        self.child: Child | None = None

    @property
    def progress(self) -> Progress:
        return self.files.progress(self.number)

    @property
    def done(self) -> bool:
        return self.progress.stages == self.made.stages

    def start(self) -> None:
        """Start the process, at the stage that its last report names."""
        made = {"seed": self.made.seed, "events": self.made.events, "producers": self.made.producers, "producer": self.number}
        options = [text for name, value in made.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "queryloop.torture.producer", *options, "--folder", str(self.files.folder)]
        self.child = Child(f"producer-{self.number}", command, self._log, environ_of(self._settings))

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
    """The processes of one run; start the workers and producers, then call `tend` or `wait`, and `stop` at the end."""

    def __init__(self, made: TortureLog, workers: list[Worker], producers: list[Producer], partitions: int) -> None:
        self.made = made
        self.workers = workers
        self.producers = producers
        self.surprises: list[Surprise] = []
        self.partitions = partitions
        self._limit = 0
        self._files = producers[0].files
        self._marks: dict[int, dict[int, int]] = {}
        self._offsets: dict[int, tuple[str, int]] = {}
        self._topic_id = ""
        self._pause = threading.Event().wait
        self._moved: tuple[float, Any] = (time.monotonic(), None)

    def start(self, topic_id: str) -> None:
        """Start workers and producers. `topic_id` says which log counts."""
        self._topic_id = topic_id
        for worker in self.workers:
            worker.start("first start")
        for producer in self.producers:
            producer.start()

    def send_again(self, topic_id: str) -> None:
        """The log is lost and another stands in its place: every producer sends all that it has sent once more."""
        for producer in self.producers:
            producer.stop()
        self._topic_id = topic_id
        self._marks.clear()
        for producer in self.producers:
            self._files.report(producer.number, Progress())
            producer.start()

    def allow(self, share: float) -> None:
        """Let this share of the log flow."""
        self._limit = max(self._limit, math.ceil(share * self.made.stages))

    def allow_more(self, stages: int) -> None:
        """Let so many stages flow beyond what is sent, so that something flows while processes die and come back."""
        self._limit = max(self._limit, self.sent_stages + stages)

    def settled(self, worker: Worker) -> bool:
        """Whether a worker has counted something since its start, or has its shards and nothing to count."""
        return worker.settled or (bool(worker.shards) and self.idle)

    @property
    def idle(self) -> bool:
        """Whether all that may flow is sent and counted."""
        return self.applied_stages == self.sent_stages == min(self._limit, self.made.stages)

    @property
    def sent_stages(self) -> int:
        """Stages that every producer has delivered."""
        return min(producer.progress.stages for producer in self.producers)

    @property
    def applied_stages(self) -> int:
        """Stages that every shard has counted."""
        return max((stage for stage, mark in self._marks.items() if all(map(self._has_passed, mark.items()))), default=0)

    @property
    def applied_share(self) -> float:
        """The share of the log that is counted, 0 to 1."""
        return self.applied_stages / self.made.stages

    @property
    def all_sent(self) -> bool:
        return all(producer.done for producer in self.producers)

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
        for number, shard in self.shards().items():
            if shard["topic_id"] is not None:
                self._offsets[number] = (shard["topic_id"], shard["next_offset"])
        self._mark()
        self._files.open_gate(min(self._limit, self.sent_stages + APART_STAGES, self.applied_stages + AHEAD_STAGES))

    def wait(self, until: Callable[[], bool], what: str, timeout_s: float | None = None) -> float:
        """Tend until it holds; the seconds it took. Raises TortureError when nothing is counted any more or the time is over."""
        began = time.monotonic()
        self._moved = (began, None)
        while not until():
            self.tend()
            self._pause(POLL_S)
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

    def _has_passed(self, place: tuple[int, int]) -> bool:
        partition, offset = place
        topic_id, next_offset = self._offsets.get(partition, ("", 0))
        return topic_id == self._topic_id and next_offset >= offset

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

    def _mark(self) -> None:
        stage = self.sent_stages
        if stage and stage not in self._marks:
            ends: dict[int, int] = {}
            for producer in self.producers:
                for number, offset in producer.progress.positions.items():
                    ends[number] = max(ends.get(number, 0), offset)
            self._marks[stage] = ends

    def _refuse_standstill(self, what: str) -> None:
        state = (self.sent_stages, dict(self._offsets))
        if state != self._moved[1]:
            self._moved = (time.monotonic(), state)
        elif time.monotonic() - self._moved[0] > STALL_S:
            raise TortureError(f"nothing was sent or counted for {STALL_S:g} s, waiting until {what}\n{self.tails()}")
