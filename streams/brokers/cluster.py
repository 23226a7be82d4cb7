"""Three nodes of real Apache Kafka on loopback ports, to test the loss of a broker.

Topics on it need `kafka.replication = 3` and `kafka.min_insync = 2`: an acknowledged event is then on two nodes, and survives the
loss of either.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streams.brokers.broker import STOP_GRACE_S, BrokerError, node_numbers
from streams.brokers.jars import KafkaUnavailable
from streams.brokers.node import HOST, START_TIMEOUT_S, KafkaNode, make_cluster_id
from streams.brokers.topics import describe_partitions
from streams.runtime.processes import Child, ProcessError, accepts, non_ephemeral_ports

HEAP_MB = 256


class KafkaCluster:
    """`nodes` nodes from number 1, each broker and controller, durable in `data_dir`/kafka-cluster; a restart keeps their ports.

    A context manager: entering starts all nodes and waits until they know each other, leaving stops them.
    """

    kind = "kafka"
    durable = True

    def __init__(self, data_dir: Path, nodes: int = 3) -> None:
        self.folder = data_dir.absolute() / "kafka-cluster"
        ports = non_ephemeral_ports(2 * nodes, HOST)
        controllers = dict(enumerate(ports[nodes:], 1))
        self.nodes = {
            number: KafkaNode(self.folder / f"node-{number}", port, controllers, number, HEAP_MB)
            for number, port in enumerate(ports[:nodes], 1)
        }
        self.children: dict[int, Child] = {}

    @property
    def bootstrap(self) -> str:
        """The addresses of all nodes, also of those that are down."""
        return ",".join(node.address for node in self.nodes.values())

    def describe(self) -> str:
        """Return one line for people."""
        return f"Apache Kafka at {self.bootstrap}: {len(self.nodes)} nodes, durable in {self.folder}"

    def alive(self) -> list[int]:
        """Return the nodes whose process runs."""
        return [number for number, child in sorted(self.children.items()) if child.returncode is None]

    def start(self, node: int, *, wait: bool = True) -> None:
        """Start a node that does not run; with `wait`, wait until the cluster reports it as alive. Raises BrokerError.

        After a kill this takes up to 6 s longer than after a stop, because its old session has to end first.
        """
        if node in self.alive():
            raise BrokerError(f"node {node} of the Kafka cluster runs already")
        try:
            self.children[node] = self.nodes[node].launch(self._cluster_id())
            if wait:
                self._wait(node)
        except (KafkaUnavailable, ProcessError) as error:
            raise BrokerError(str(error)) from error

    def kill(self, node: int) -> None:
        """Kill a node with SIGKILL: it flushes nothing and does not leave the cluster in order."""
        self.children[node].kill()

    def stop(self) -> None:
        """Stop every node. All get SIGTERM before any is waited for: else the last ones would wait for a lost quorum."""
        for child in self.children.values():
            child.terminate()
        for child in self.children.values():
            child.stop(STOP_GRACE_S)
        self.children.clear()

    def leader(self, topic: str, partition: int) -> int | None:
        """Return the node that leads a partition, None while there is none. Raises TopicError."""
        found = int(self._partition(topic, partition)["leader_id"])
        return found if found in self.nodes else None

    def in_sync(self, topic: str, partition: int) -> frozenset[int]:
        """Return the nodes with all acknowledged records of a partition (in-sync replicas). Raises TopicError."""
        return frozenset(self._partition(topic, partition)["isr_nodes"])

    def _partition(self, topic: str, partition: int) -> dict[str, Any]:
        found = {one["partition_index"]: one for one in describe_partitions(self._reachable(), topic)}
        return found[partition]

    def _reachable(self) -> str:
        return ",".join(self.nodes[number].address for number in self.alive()) or self.bootstrap

    def _wait(self, node: int) -> None:
        def is_alive() -> bool:
            address = self.nodes[node].address
            return accepts(HOST, self.nodes[node].port) and node in node_numbers(address)

        self.children[node].wait_until(is_alive, START_TIMEOUT_S, "a live node of the cluster")

    def _cluster_id(self) -> str:
        """Return the cluster's id, made once and kept in the cluster's folder."""
        path = self.folder / "cluster-id"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(make_cluster_id(), encoding="ascii")
        return path.read_text(encoding="ascii")

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.stop)
            for number in self.nodes:
                self.start(number, wait=False)
            self._wait_for_all()
            undo.pop_all()
        return self

    def _wait_for_all(self) -> None:
        try:
            for number in self.nodes:
                self._wait(number)
        except ProcessError as error:
            raise BrokerError(str(error)) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
