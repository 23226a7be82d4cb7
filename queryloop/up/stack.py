"""All processes of one machine: broker, worker, serving and trainers, started in order, watched, and stopped in reverse.

`queryloop up` and the demo use the same `Stack`. Each process gets the effective settings as variables, so all of them agree.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from queryloop.up.supervised_process import PrintLine, Room, Supervisor, answers_http, room_environ
from streams.brokers.broker import Broker, BrokerError, EmbeddedBroker, KafkaBroker, choose_broker
from streams.brokers.jars import KafkaUnavailable
from streams.brokers.topics import KafkaSettings, TopicError, create_topics
from streams.runtime.atomic_files import replace_file
from streams.runtime.data_folder import open_data_folder
from streams.runtime.environment import to_environ
from streams.runtime.processes import Child, ProcessError, describe_busy_port, find_start, free_port, port_is_free
from streams.runtime.settings import RECORD
from streams.runtime.settings_records import record_path, record_settings
from streams.store.counted_log import check_log
from streams.store.shard_registry import http_url
from trainers.jobs.ledger import Ledger, LedgerError
from trainers.jobs.processes import count_cores

if TYPE_CHECKING:
    from queryloop.settings import Settings

log = logging.getLogger(__name__)
ROOMS = ("streams", "serving", "trainers")
WATCH_S = 0.2
EMBEDDED_SESSION_S = 6.0


class UpError(RuntimeError):
    """The processes cannot be started; the text names what is in the way and the setting to change."""


@dataclass(frozen=True)
class Urls:
    """The base URLs of a stack's HTTP servers."""

    serving: str
    worker: str
    trainers: str


class Stack:
    """The processes of one machine, as a context manager: ready on entry, all stopped on exit.

    Entering raises UpError or SettingsError, after what was started is stopped again."""

    def __init__(
        self,
        settings: Settings,
        rooms: Sequence[str] = ROOMS,
        print_line: PrintLine | None = None,
        config: Path | None = None,
        as_read: Settings | None = None,
    ) -> None:
        self.settings = _with_ports(settings)
        self._as_read, self._config = as_read or settings, config
        self.rooms = rooms
        self.broker: Broker = choose_broker(settings.kafka, settings.data.dir)
        self._print_line = print_line or (lambda line: log.warning("event=stack message=%r", line))
        self._supervisors: dict[str, Supervisor] = {}
        self._open = ExitStack()
        self._watcher = Watcher(self._check)

    @property
    def bootstrap(self) -> str:
        return self.broker.bootstrap

    @property
    def urls(self) -> Urls:
        serving, timetable = self.settings.serving, self.settings.timetable
        trainers = http_url(timetable.host, timetable.port)
        return Urls(f"http://{serving.host}:{serving.port}", self.settings.worker.local_url, trainers)

    @property
    def restarts(self) -> dict[str, int]:
        """How often each room's process had to be started again."""
        return {name: supervisor.restarts for name, supervisor in self._supervisors.items()}

    def child(self, room: str) -> Child:
        """The running process of a room. Raises KeyError for a room that is not part of the stack."""
        child = self._supervisors[room].child
        if child is None:
            raise KeyError(room)
        return child

    def __enter__(self) -> Self:
        try:
            self._start()
        except (BrokerError, KafkaUnavailable, TopicError, ProcessError, LedgerError) as error:
            self._open.close()
            raise UpError(str(error)) from error
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def _start(self) -> None:
        folder = self.settings.data.dir
        self._open.callback(self._watcher.end)
        self._open.enter_context(_lock_folder(folder))
        open_data_folder(folder)
        check_log(folder, self.settings.kafka)
        record_settings("up", self._as_read, folder, self._config)
        _refuse_busy_ports(self.settings, self.rooms)
        self._open.enter_context(self.broker)
        create_topics(self.bootstrap, self.settings.kafka)
        self._print_line(self.broker.describe())
        for room in _describe_rooms(self.settings, self.bootstrap, self.urls, self.rooms):
            supervisor = self._supervisors[room.name] = Supervisor(room, self._print_line)
            self._open.callback(supervisor.stop)
            supervisor.start(time.monotonic())
        for supervisor in self._supervisors.values():
            supervisor.wait_ready()
        self._open.enter_context(_publish_address(folder / "run" / "up.json", self.bootstrap, self.urls))
        self._open.enter_context(self._watcher)

    def _check(self) -> None:
        try:
            self._check_broker()
        except (BrokerError, TopicError) as error:
            self._print_line(f"the broker cannot be started again, next try soon: {error}")
        for supervisor in self._supervisors.values():
            supervisor.check(time.monotonic())

    def _check_broker(self) -> None:
        """Start our own broker again, at the same address, when it has died; the embedded one is empty then."""
        if not isinstance(self.broker, EmbeddedBroker | KafkaBroker):
            return
        child = self.broker.child
        if child is not None and child.returncode is None:
            return
        code = None if child is None else child.returncode
        self._print_line(f"the broker ended with code {code}, starting it again: {self.broker.describe()}")
        self.broker.stop()
        self.broker.start()
        create_topics(self.bootstrap, self.settings.kafka)


class Watcher:
    """Calls `check` several times a second while its `with` block is open.

    A process dies with the thread that started it. So the thread outlives the block, until `end`: in between, the processes that
    it started again are stopped in order."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._leave, self._idle, self._over = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._leave.set()
        while self._thread.is_alive() and not self._idle.wait(WATCH_S):
            pass

    def end(self) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._leave.wait(WATCH_S):
            self._check()
        self._idle.set()
        self._over.wait()


def _with_ports(settings: Settings) -> Settings:
    """Return the settings with a free port wherever the port is 0."""
    changed = {
        name: section.model_copy(update={"port": section.port or free_port(section.host)})
        for name, section in (("serving", settings.serving), ("worker", settings.worker), ("timetable", settings.timetable))
    }
    return settings.model_copy(update=changed)


def _refuse_busy_ports(settings: Settings, rooms: Sequence[str]) -> None:
    sections = (
        ("streams", "worker", settings.worker),
        ("serving", "serving", settings.serving),
        ("trainers", "timetable", settings.timetable),
    )
    for room, name, section in sections:
        if room in rooms and not port_is_free(section.host, section.port):
            raise UpError(
                f"{describe_busy_port(section.host, section.port)}: stop what runs there, or choose another one with "
                f"{name}.port (QUERYLOOP_{name.upper()}_PORT)"
            )


def _describe_rooms(settings: Settings, bootstrap: str, urls: Urls, rooms: Sequence[str]) -> Iterator[Room]:
    folder = settings.data.dir
    own = to_environ(settings.model_copy(update={"kafka": _kafka_for_rooms(settings.kafka, bootstrap)}))
    environ = {**own, RECORD: str(record_path(folder, "up").absolute())}
    ledger = Ledger(folder / "ledger.sqlite")
    ready: dict[str, Callable[[Child], bool]] = {
        "streams": lambda child: answers_http(f"{urls.worker}/healthz"),
        "serving": lambda child: answers_http(f"{urls.serving}/healthz"),
        "trainers": lambda child: (beat := ledger.heartbeat()) is not None and beat.pid == child.pid,
    }
    threads = {"streams": 1, "serving": settings.serving.threads, "trainers": count_cores()}
    for name in (room for room in ROOMS if room in rooms):
        yield Room(name, room_environ(environ, threads[name]), folder / "logs" / f"{name}.log", ready[name])


def _kafka_for_rooms(kafka: KafkaSettings, bootstrap: str) -> KafkaSettings:
    """Return the Kafka settings for the rooms.

    The embedded broker lets a worker join only after most of the session timeout: with the shortest one events are counted after
    7 s instead of 33 s."""
    embedded = kafka.bootstrap is None and kafka.broker == "embedded"
    timeout = EMBEDDED_SESSION_S if embedded else kafka.session_timeout_s
    return kafka.model_copy(update={"bootstrap": bootstrap, "session_timeout_s": min(timeout, kafka.session_timeout_s)})


@contextmanager
def _lock_folder(data_dir: Path) -> Iterator[None]:
    """Lock the data folder: one stack at a time uses it. Raises UpError."""
    place = data_dir / "run"
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / "up.lock").open("w")
    except OSError as error:
        raise UpError(f"data.dir = {str(data_dir)!r} cannot be used: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpError(f"another queryloop up works in {data_dir}: stop it, or choose another folder with data.dir") from None
        yield


@contextmanager
def _publish_address(path: Path, bootstrap: str, urls: Urls) -> Iterator[None]:
    """Write the stack's addresses for other commands on this machine to read, and remove the file on exit."""
    content = json.dumps({"pid": os.getpid(), "started": find_start(os.getpid()), "bootstrap": bootstrap, **asdict(urls)}) + "\n"
    replace_file(path, content.encode(), durable=False)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
