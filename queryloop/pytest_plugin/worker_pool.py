"""Workers for tests: each with topics and a data folder of its own, on brokers that the tests of a run share.

A worker takes seconds to start. So while one test runs, the worker of the next one starts already, in a process that has run a
worker before.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

with warnings.catch_warnings():
    # kafka-python reads its message schemas with a function that Python 3.11 deprecates and later versions restored.
    warnings.simplefilter("ignore", DeprecationWarning)
    import streams.brokers.clients  # noqa: F401

from queryloop.pytest_plugin.runner_pool import RunnerPool, WorkerRunner
from queryloop.replay.replay import NEVER_S, SESSION_S
from queryloop.up.worker_process import read_status
from streams.brokers.broker import Broker, EmbeddedBroker, ExternalBroker, KafkaBroker
from streams.brokers.connection import KafkaConnection
from streams.brokers.topics import create_topics
from streams.runtime.clocks import set_clock
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child, ProcessError, free_port
from streams.runtime.settings import DataSettings, load_settings
from streams.runtime.validation_errors import explain_error
from streams.worker.settings import StreamsSettings

PARTITIONS = 2
START_S = 20.0
Sections = dict[str, dict[str, Any]]


class IsolatedWorker:
    """A worker on topics of its own; `settings` are all of its settings."""

    def __init__(self, settings: StreamsSettings, runner: WorkerRunner) -> None:
        assert settings.kafka.bootstrap is not None and settings.worker.clock_file is not None
        self.settings = settings
        self.bootstrap = settings.kafka.bootstrap
        self.clock_file = settings.worker.clock_file
        self.runner = runner
        settings.data.dir.mkdir(parents=True)
        set_clock(self.clock_file, time.time())
        create_topics(self.bootstrap, settings.kafka)
        runner.send(to_environ(settings, {}))

    @property
    def child(self) -> Child:
        """The worker's process."""
        return self.runner.child

    def await_answer(self) -> None:
        """Wait at most START_S until the worker answers over HTTP or its process has ended."""
        with suppress(ProcessError):
            self.child.wait_until(lambda: read_status(self.settings) is not None, START_S, "answering")


class WorkerPool:
    """The brokers of a test run and the workers on them. Use it in a `with` block: leaving stops everything."""

    def __init__(self, runners: RunnerPool) -> None:
        self._runners = runners
        self._stack = ExitStack()
        self._brokers: dict[str, Broker] = {}
        self._spare: dict[str, IsolatedWorker] = {}

    def acquire(self, broker: str, sections: Sections) -> IsolatedWorker:
        """Return a fresh worker. Raises BrokerError, ValueError for settings that a worker does not have."""
        if not sections and (spare := self._spare.pop(broker, None)) is not None:
            return spare
        return IsolatedWorker(self._settings(broker, sections), self._runners.acquire())

    def start_spare(self, broker: str) -> None:
        """Start a worker for the next test, unless one is ready."""
        if broker not in self._spare:
            self._spare[broker] = IsolatedWorker(self._settings(broker, {}), self._runners.acquire())

    def release(self, worker: IsolatedWorker) -> None:
        """End a worker and let its runner remove what it leaves; the runner can then run another one."""
        if worker.settings.kafka.broker == "kafka":
            # Its topics would outlive the run: they are removed after a worker that was stopped, so it must be running first.
            worker.await_answer()
        if read_status(worker.settings) is None:
            worker.child.kill()  # SIGTERM before the worker handles it would end the runner at any later time
            return
        worker.child.terminate()
        self._runners.release(worker.runner)

    def _settings(self, broker: str, sections: Sections) -> StreamsSettings:
        name = f"test-{uuid.uuid4().hex[:12]}"
        kind = "embedded" if broker == "embedded" else "kafka"
        folder = self._runners.folder / name
        kafka_names = {"topic": name, "quarantine_topic": f"{name}.quarantine", "group": name}
        fixed: Sections = {
            "kafka": {"bootstrap": self._start(broker).bootstrap, "broker": kind, **kafka_names},
            "worker": {"port": free_port(), "clock_file": folder / "clock"},
        }
        usual: Sections = {
            "kafka": {"partitions": PARTITIONS, "session_timeout_s": SESSION_S[kind], **_read_login(broker)},
            "worker": {"static": False},
            "lake": {"maturity_floor_s": NEVER_S},
        }
        return make_settings(DataSettings(dir=folder), usual, sections, fixed)

    def _start(self, broker: str) -> Broker:
        if broker not in self._brokers:
            self._brokers[broker] = self._stack.enter_context(self._choose(broker))
        return self._brokers[broker]

    def _choose(self, broker: str) -> Broker:
        if broker == "embedded":
            return EmbeddedBroker()
        if broker == "kafka":
            return KafkaBroker(self._runners.folder / "broker")
        if ":" in broker:
            return ExternalBroker(KafkaConnection(**{"bootstrap": broker, **_read_login(broker)}))
        raise ValueError(f"queryloop's broker is {broker!r}: embedded, kafka or host:port (--queryloop-broker, or the marker)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for spare in self._spare.values():
            self.release(spare)
        self._runners.stop()  # while the brokers still answer
        self._stack.close()


def _read_login(broker: str) -> dict[str, Any]:
    """Return how an external broker is reached, from the settings file and the environment; nothing for one started here."""
    if ":" not in broker:
        return {}
    kafka = load_settings(StreamsSettings, environ={**os.environ, "QUERYLOOP_KAFKA_BOOTSTRAP": broker}).kafka
    return kafka.model_dump(include=set(KafkaConnection.model_fields) - {"bootstrap"}, exclude_defaults=True)


def make_settings(data: DataSettings, *layers: Sections) -> StreamsSettings:
    """Return the defaults with these sections over them, later ones over earlier. Raises ValueError naming section and key."""
    merged: Sections = {}
    for layer in layers:
        for section, values in layer.items():
            if section not in StreamsSettings.model_fields or section == "data":
                known = ", ".join(name for name in StreamsSettings.model_fields if name != "data")
                raise ValueError(f"no section {section!r} that a worker reads: {known}")
            merged[section] = merged.get(section, {}) | values
    try:
        return StreamsSettings.model_validate({"data": data, **merged})
    except ValidationError as error:
        faults: list[dict[str, Any]] = [dict(one) for one in error.errors(include_url=False)]
        keys = [".".join(str(part) for part in one["loc"]) for one in faults]
        problems = "; ".join(f"{key}: {explain_error(one, StreamsSettings)}" for key, one in zip(keys, faults, strict=True))
        raise ValueError(f"settings of the test: {problems}") from None
