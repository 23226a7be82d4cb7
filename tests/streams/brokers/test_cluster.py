"""The cluster of three: an acknowledged record survives its leader, and a killed node is in sync again after its restart."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer

from streams.brokers.broker import Broker, BrokerError
from streams.brokers.cluster import KafkaCluster
from streams.brokers.topics import KafkaSettings, create_topics, describe_partitions, end_offsets, topic_id
from streams.runtime.processes import NON_EPHEMERAL_PORTS, non_ephemeral_ports


def wait_until(ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.05)


@pytest.mark.full
def test_a_killed_leader_loses_no_acknowledged_record_and_is_in_sync_after_a_restart(
    kafka_broker: Broker, tmp_path: Path
) -> None:
    with KafkaCluster(tmp_path) as cluster:
        assert cluster.alive() == [1, 2, 3]
        with pytest.raises(BrokerError, match="node 1 of the Kafka cluster runs already"):
            cluster.start(1)
        create_topics(cluster.bootstrap, KafkaSettings(replication=3, min_insync=2, partitions=2))
        assert [sorted(one["replica_nodes"]) for one in describe_partitions(cluster.bootstrap, "events")] == [[1, 2, 3]] * 2
        identity = topic_id(cluster.bootstrap, "events")
        producer = KafkaProducer(bootstrap_servers=cluster.bootstrap, acks="all", delivery_timeout_ms=60_000)
        producer.send("events", b"before", partition=0).get(30)
        old = cluster.leader("events", 0)
        assert old is not None
        cluster.kill(old)
        assert old not in cluster.alive()
        wait_until(lambda: cluster.leader("events", 0) not in (None, old))
        producer.send("events", b"after", partition=0).get(60)
        producer.close()
        assert cluster.in_sync("events", 0) == {1, 2, 3} - {old}
        assert topic_id(cluster.bootstrap, "events") == identity
        cluster.start(old)
        wait_until(lambda: cluster.in_sync("events", 0) == {1, 2, 3})
        assert end_offsets(cluster.bootstrap, "events") == {0: 2, 1: 0}
        consumer = KafkaConsumer("events", bootstrap_servers=cluster.bootstrap, auto_offset_reset="earliest")
        found: list[bytes] = []
        wait_until(lambda: bool(found.extend(r.value for rs in consumer.poll(200).values() for r in rs) or len(found) == 2))
        consumer.close()
        assert found == [b"before", b"after"]
        children = list(cluster.children.values())
    assert all(child.returncode is not None for child in children)


def test_a_cluster_has_ports_that_the_system_never_chooses_by_itself(tmp_path: Path) -> None:
    cluster = KafkaCluster(tmp_path)
    addresses = cluster.bootstrap.split(",")
    assert len(set(addresses)) == 3 and cluster.alive() == []
    ports = non_ephemeral_ports(6)
    assert len(set(ports)) == 6 and all(NON_EPHEMERAL_PORTS[0] <= port < NON_EPHEMERAL_PORTS[1] for port in ports)
