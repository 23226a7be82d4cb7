"""One node of Apache Kafka as a child process: its properties, storage and start. A broker has one, a cluster several.

Every node is broker and controller at once, and the quorum of controllers is static: written into each node's properties.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from streams.brokers.jars import fetch_jars
from streams.runtime.processes import Child, ProcessError

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
JVM_FLAGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN")

# All ports may change while no node runs: a static quorum keeps none of them on disk.
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id={number}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.quorum.voters={voters}
log.dirs={logs}
default.replication.factor={copies}
offsets.topic.replication.factor={copies}
offsets.topic.num.partitions=4
transaction.state.log.replication.factor={copies}
transaction.state.log.min.isr={in_sync}
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor={copies}
share.coordinator.state.topic.min.isr={in_sync}
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


@dataclass(frozen=True)
class KafkaNode:
    """One node: its folder, its client port, and the controller port of every node of its quorum, by node number."""

    folder: Path
    port: int
    controllers: Mapping[int, int]
    number: int = 1
    heap_mb: int = 512

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def launch(self, cluster_id: str | None = None) -> Child:
        """Start the node without waiting. Its first start formats its storage, for the cluster `cluster_id` (default: a new one).

        Raises KafkaUnavailable without Java or jars, ProcessError when the storage cannot be made.
        """
        java = ["java", *JVM_FLAGS, f"-Xmx{self.heap_mb}m", "-cp", f"{fetch_jars()}/*"]
        name = f"Apache Kafka (node {self.number} of {len(self.controllers)})" if len(self.controllers) > 1 else "Apache Kafka"
        properties = self._write_properties()
        log = self.folder / "broker.log"
        if not (self.folder / "log" / "meta.properties").exists():
            tool = [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id or make_cluster_id(), "-c", str(properties)]
            self._format(tool, log)
        return Child(name, [*java, "kafka.Kafka", properties], log)

    def _write_properties(self) -> Path:
        copies = min(3, len(self.controllers))
        text = SERVER_PROPERTIES.format(
            number=self.number,
            host=HOST,
            port=self.port,
            controller_port=self.controllers[self.number],
            voters=",".join(f"{number}@{HOST}:{port}" for number, port in self.controllers.items()),
            logs=self.folder / "log",
            copies=copies,
            in_sync=max(1, copies - 1),
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "server.properties"
        path.write_text(text, encoding="utf-8")
        return path

    def _format(self, tool: list[str], log: Path) -> None:
        with Child("Kafka's StorageTool", tool, log) as child:
            if child.sleep(START_TIMEOUT_S) != 0:
                raise ProcessError(f"Kafka's storage could not be formatted in {self.folder}; {log} ends:\n{child.tail()}")


def make_cluster_id() -> str:
    """Return a random id as Kafka makes them: 16 bytes in URL-safe base64 without a dash."""
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode().replace("-", "A")
