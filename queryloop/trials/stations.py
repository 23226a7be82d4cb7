"""Stations: a worker process with topics and a data folder of its own, on a broker that the tests of a run share.

A worker takes seconds to start. So while a test runs on one station, the next starts already, if another test will want it.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
import uuid
import warnings
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import ValidationError

with warnings.catch_warnings():
    # kafka-python reads its message schemas with a function that Python 3.11 deprecates and later versions restored.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka

from streams.brokers import Broker, EmbeddedBroker, ExternalBroker, KafkaBroker
from streams.clocks import set_clock
from streams.processes import free_port
from streams.replay import NEVER_S, SESSION_S
from streams.settings import DataSettings
from streams.topics import create_topics
from streams.worker import StreamsSettings
from streams.worker_process import WorkerProcess

PARTITIONS = 2
Sections = dict[str, dict[str, Any]]


class Station:
    """A worker on topics of its own. `settings` are all that it runs with."""

    def __init__(self, settings: StreamsSettings) -> None:
        self.settings = settings
        self.folder = settings.data.dir
        self.clock_file = self.folder / "clock"
        self.folder.mkdir(parents=True)
        set_clock(self.clock_file, time.time())
        create_topics(self.bootstrap, settings.kafka)
        self.worker = WorkerProcess(settings, self.folder / "worker.log")

    @property
    def bootstrap(self) -> str:
        """host:port of the broker."""
        assert self.settings.kafka.bootstrap is not None
        return self.settings.kafka.bootstrap

    def stop(self) -> None:
        """End the worker at once, its counts are thrown away, and remove everything of it."""
        self.worker.child.kill()
        shutil.rmtree(self.folder)
        if self.settings.kafka.broker == "kafka":  # real ones outlive the run, or fill a disk
            topics = [self.settings.kafka.topic, self.settings.kafka.quarantine_topic]
            with kafka.KafkaAdminClient(bootstrap_servers=self.bootstrap) as admin:
                admin.delete_topics(topics)


class Stations:
    """The brokers of a run and the stations on them. Use it in a `with` block: leaving stops everything."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._brokers: dict[str, Broker] = {}
        self._spare: dict[str, Station] = {}

    def take(self, broker: str, sections: Sections) -> Station:
        """Return a station that nobody has used. Raises BrokerError, SettingsError."""
        if not sections and (spare := self._spare.pop(broker, None)) is not None:
            return spare
        return Station(self._settings(broker, sections))

    def prepare(self, broker: str) -> None:
        """Start a station for the next test, if none waits."""
        if broker not in self._spare:
            self._spare[broker] = Station(self._settings(broker, {}))

    def _settings(self, broker: str, sections: Sections) -> StreamsSettings:
        name = f"test-{uuid.uuid4().hex[:12]}"
        kind = "embedded" if broker == "embedded" else "kafka"
        folder = self._folder / name
        kafka_names = {"topic": name, "quarantine_topic": f"{name}.quarantine", "group": name}
        fixed: Sections = {
            "kafka": {"bootstrap": self._start(broker).bootstrap, "broker": kind, **kafka_names},
            "worker": {"port": free_port(), "clock_file": folder / "clock"},
        }
        usual: Sections = {
            "kafka": {"partitions": PARTITIONS, "session_timeout_s": SESSION_S[kind]},
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
            return KafkaBroker(self._folder / "broker")
        if ":" in broker:
            return ExternalBroker(broker)
        raise ValueError(f"queryloop's broker is {broker!r}: embedded, kafka or host:port (--queryloop-broker, or the marker)")

    def __enter__(self) -> Self:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="queryloop-test-")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for spare in self._spare.values():
            self._stack.callback(spare.stop)
        self._stack.close()
        with warnings.catch_warnings():  # kafka-python 3.0.12 leaves sockets of refused connections to the garbage collector
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


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
        said = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False))
        raise ValueError(f"settings of the test: {said}") from None
