"""Stations: a worker process with topics and a data folder of its own, on a broker that the tests of a run share.

A worker takes seconds to start. So while a test runs on one station, the next starts already, if another test will want it, in a
process that has run a worker before.
"""

from __future__ import annotations

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

from queryloop.pytest_plugin.runner_pool import Host, Hosts
from queryloop.replay.replay import NEVER_S, SESSION_S
from queryloop.up.worker_process import read_status
from streams.brokers.broker import Broker, EmbeddedBroker, ExternalBroker, KafkaBroker
from streams.brokers.topics import create_topics
from streams.runtime.clocks import set_clock
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child, ProcessError, free_port
from streams.runtime.settings import DataSettings
from streams.worker.settings import StreamsSettings

PARTITIONS = 2
START_S = 20.0
Sections = dict[str, dict[str, Any]]


class Station:
    """A worker on topics of its own. `settings` are all that it runs with."""

    def __init__(self, settings: StreamsSettings, host: Host) -> None:
        assert settings.kafka.bootstrap is not None and settings.worker.clock_file is not None
        self.settings = settings
        self.bootstrap = settings.kafka.bootstrap
        self.clock_file = settings.worker.clock_file
        self.host = host
        settings.data.dir.mkdir(parents=True)
        set_clock(self.clock_file, time.time())
        create_topics(self.bootstrap, settings.kafka)
        host.order(to_environ(settings, {}))

    @property
    def child(self) -> Child:
        """The worker's process."""
        return self.host.child

    def await_answer(self) -> None:
        """Wait until the worker's HTTP answers, or its process has ended, for at most START_S."""
        with suppress(ProcessError):
            self.child.wait_until(lambda: read_status(self.settings) is not None, START_S, "answering")


class Stations:
    """The brokers of a run and the stations on them. Use it in a `with` block: leaving stops everything."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._stack = ExitStack()
        self._brokers: dict[str, Broker] = {}
        self._spare: dict[str, Station] = {}

    def take(self, broker: str, sections: Sections) -> Station:
        """Return a station that nobody has used. Raises BrokerError, SettingsError."""
        if not sections and (spare := self._spare.pop(broker, None)) is not None:
            return spare
        return Station(self._settings(broker, sections), self._hosts.find())

    def prepare(self, broker: str) -> None:
        """Start a station for the next test, if none waits."""
        if broker not in self._spare:
            self._spare[broker] = Station(self._settings(broker, {}), self._hosts.find())

    def give_back(self, station: Station) -> None:
        """End a station's worker and have it removed; its process is free for another."""
        if (
            station.settings.kafka.broker == "kafka"
        ):  # topics would outlive the run: the worker must get so far that it is stopped
            station.await_answer()
        if read_status(station.settings) is None:
            station.child.kill()  # a signal that comes before the worker minds it would end the process later, at any time
            return
        station.child.terminate()
        self._hosts.free(station.host)

    def _settings(self, broker: str, sections: Sections) -> StreamsSettings:
        name = f"test-{uuid.uuid4().hex[:12]}"
        kind = "embedded" if broker == "embedded" else "kafka"
        folder = self._hosts.folder / name
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
            return KafkaBroker(self._hosts.folder / "broker")
        if ":" in broker:
            return ExternalBroker(broker)
        raise ValueError(f"queryloop's broker is {broker!r}: embedded, kafka or host:port (--queryloop-broker, or the marker)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for spare in self._spare.values():
            self.give_back(spare)
        self._hosts.stop()  # while the brokers still answer
        self._stack.close()


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
