"""The brokers of a torture run: killed with SIGKILL, kept down, started again at the same address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from streams.brokers.broker import BrokerError, EmbeddedBroker, KafkaBroker
from streams.brokers.cluster import KafkaCluster
from streams.brokers.topics import KafkaSettings, create_topics, topic_id
from streams.runtime.processes import non_ephemeral_ports

DOWN_S = 2.0
PollFor = Callable[[float], None]
"""Keeps the harness running for so many seconds."""


class TortureBroker(Protocol):
    """A broker that can be killed. As a context manager it is ready on entry and stopped on exit."""

    @property
    def bootstrap(self) -> str: ...

    def restart(self, poll_for: PollFor) -> str | None:
        """Kill it, wait, start it. Returns the new topic id when the broker lost its log, else None."""

    def kill_leader(self, partition: int, poll_for: PollFor) -> int:
        """Kill the node that leads a partition, wait, start it again; return the node's number."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def open_broker(kind: str, nodes: int, folder: Path, kafka: KafkaSettings) -> TortureBroker:
    """Return the broker that the command line asks for, not started yet."""
    if nodes > 1:
        return Cluster(KafkaCluster(folder, nodes), kafka)
    [port] = non_ephemeral_ports(1)
    return OneNode(KafkaBroker(folder, port) if kind == "kafka" else EmbeddedBroker(port), kafka)


class OneNode:
    """The embedded broker, which loses its log when it is killed, or real Kafka on one node, which must not."""

    def __init__(self, broker: EmbeddedBroker | KafkaBroker, kafka: KafkaSettings) -> None:
        self._broker = broker
        self._kafka = kafka

    @property
    def bootstrap(self) -> str:
        return self._broker.bootstrap

    def restart(self, poll_for: PollFor) -> str | None:
        child = self._broker.child
        if child is None:
            raise BrokerError("the broker does not run")
        child.kill()
        poll_for(DOWN_S)
        self._broker.stop()
        self._broker.start()
        create_topics(self.bootstrap, self._kafka)
        return None if self._broker.durable else topic_id(self.bootstrap, self._kafka.topic)

    def kill_leader(self, partition: int, poll_for: PollFor) -> int:
        raise BrokerError("a single broker has no other node to lead a partition")

    def __enter__(self) -> Self:
        self._broker.start()
        create_topics(self.bootstrap, self._kafka)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._broker.stop()


class Cluster:
    """Several nodes of real Kafka, of which one at a time is down."""

    def __init__(self, cluster: KafkaCluster, kafka: KafkaSettings) -> None:
        self._cluster = cluster
        self._kafka = kafka

    @property
    def bootstrap(self) -> str:
        return self._cluster.bootstrap

    def restart(self, poll_for: PollFor) -> str | None:
        raise BrokerError("a cluster loses one node at a time")

    def kill_leader(self, partition: int, poll_for: PollFor) -> int:
        """Kill the leading node as above; return when it is in sync again, so that the next kill leaves a majority."""
        node = self._cluster.leader(self._kafka.topic, partition)
        if node is None:
            raise BrokerError(f"partition {partition} of {self._kafka.topic} has no leader")
        self._cluster.kill(node)
        poll_for(DOWN_S)
        while self._cluster.leader(self._kafka.topic, partition) in (None, node):
            poll_for(0.2)
        self._cluster.start(node, wait=False)
        while node not in self._in_sync():
            poll_for(0.2)
        return node

    def _in_sync(self) -> frozenset[int]:
        """Return the nodes that are in sync in every partition."""
        held = [self._cluster.in_sync(self._kafka.topic, number) for number in range(self._kafka.partitions)]
        return frozenset.intersection(*held)

    def __enter__(self) -> Self:
        self._cluster.__enter__()
        create_topics(self.bootstrap, self._kafka)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._cluster.stop()
