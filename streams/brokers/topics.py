"""The topics: their settings, their creation, their ids and offsets.

A topic's id, not its name, identifies the log: a broker that lost its disk has the same name with offsets that start again at 0.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, field_validator, model_validator

if TYPE_CHECKING:
    from streams.brokers.clients import KafkaAdminClient

log = logging.getLogger(__name__)

NAME = r"^[a-zA-Z0-9._-]{1,249}$"
ADDRESS = re.compile(r"\s*(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\],]+):(?P<port>\d{1,5})\s*")
TIMEOUT_S = 30.0
KAFKA_SESSION_S = 6.0
DEAD_NODES = 4
"""How many dead nodes of a cluster a request may reach, one after the other, before it fails."""

T = TypeVar("T")


class TopicError(RuntimeError):
    """A topic that cannot be created or read as set; the text names topic, broker and what to do."""


class TopicUnfit(TopicError):
    """A topic that cannot be counted exactly, though it is there; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic on its broker: its id, its number of partitions, and its cleanup.policy, "" where the broker does not tell it."""

    name: str
    topic_id: str
    partitions: int
    cleanup_policy: str = ""

    def check(self, partitions: int) -> None:
        """Raise TopicUnfit when the topic has another number of partitions than its shards, or loses records to compaction."""
        if self.partitions != partitions:
            raise TopicUnfit(
                f"topic {self.name} has {self.partitions} partitions, and is counted in {partitions} shards: sessions have moved "
                "between partitions, so their events cannot be joined. Create a topic with the new number of partitions, and "
                "replay the events into it with another data.dir (docs/scaling.md)"
            )
        if "compact" in self.cleanup_policy:
            raise TopicUnfit(
                f"topic {self.name} has cleanup.policy={self.cleanup_policy}: compaction keeps only the last record of a session "
                "and removes the events before it. Set cleanup.policy=delete, or name another topic in kafka.topic"
            )


class KafkaSettings(BaseModel, frozen=True, extra="forbid"):
    """Which broker has the log, and the names of its topics (section `kafka`)."""

    bootstrap: str | None = Field(default=None, min_length=1, description="host:port of an external broker; overrides `broker`")
    broker: Literal["embedded", "kafka"] = Field(
        default="embedded", description="the broker to run when there is no external one"
    )
    port: int = Field(
        default=9092,
        ge=0,
        le=65_535,
        description="port on loopback of the broker that runs here, the same at each start; 0: any free one, which changes",
    )
    topic: str = Field(default="events", pattern=NAME, description="topic of all events")
    quarantine_topic: str = Field(default="events.quarantine", pattern=NAME, description="topic of events that cannot be used")
    partitions: int = Field(default=4, ge=1, le=1000, description="partitions of each topic, and so the number of shards")
    replication: int | None = Field(
        default=None, ge=1, le=10, description="copies of each topic, set when it is created; unset: the broker's default"
    )
    min_insync: int | None = Field(
        default=None,
        ge=1,
        le=10,
        description="copies that must have an event before it is acknowledged; unset: the broker's default",
    )
    session_timeout_s: float = Field(
        default=45.0,
        ge=1.0,
        description="silence after which a worker is given up; real Kafka takes 6 at least, the embedded broker waits half of it",
    )
    group: str = Field(default="queryloop", min_length=1, description="consumer group of the workers")

    @field_validator("bootstrap")
    @classmethod
    def _check_addresses(cls, bootstrap: str | None) -> str | None:
        for address in (bootstrap or "").split(",") if bootstrap is not None else ():
            if not (found := ADDRESS.fullmatch(address)) or not 0 < int(found["port"]) < 65_536:
                raise ValueError(f"{address!r} is no host:port; write host:port of each broker, separated by commas")
        return bootstrap

    @model_validator(mode="after")
    def _check_topics(self) -> Self:
        if self.topic == self.quarantine_topic:
            raise ValueError(
                f"kafka.topic and kafka.quarantine_topic are both {self.topic!r}: quarantined events would be read again"
            )
        if self.min_insync and self.replication and self.min_insync > self.replication:
            raise ValueError(f"kafka.min_insync = {self.min_insync} is more than kafka.replication = {self.replication}")
        return self

    @model_validator(mode="after")
    def _refuse_short_session(self) -> Self:
        if self.broker == "kafka" and self.session_timeout_s < KAFKA_SESSION_S:
            raise ValueError(
                f"kafka.session_timeout_s is {self.session_timeout_s:g}, Apache Kafka refuses one under {KAFKA_SESSION_S:g}"
            )
        return self


def create_topics(bootstrap: str, kafka: KafkaSettings, timeout_s: float = TIMEOUT_S) -> None:
    """Create the event and quarantine topics where they do not exist, and wait until they have leaders.

    Raises TopicError when the broker does not answer, or a topic has another number of partitions: sessions would change shards.
    """
    _request(bootstrap, timeout_s, lambda admin: _create(admin, bootstrap, kafka, timeout_s))


def _create(admin: KafkaAdminClient, bootstrap: str, kafka: KafkaSettings, timeout_s: float) -> None:
    from kafka.errors import TopicAlreadyExistsError

    names = (kafka.topic, kafka.quarantine_topic)
    wanted = {
        "num_partitions": kafka.partitions,
        "replication_factor": kafka.replication or -1,
        "configs": {"min.insync.replicas": str(kafka.min_insync)} if kafka.min_insync else {},
    }
    for name in names:
        try:
            admin.create_topics({name: wanted})
        except TopicAlreadyExistsError:
            continue
    for topic in _await_topics(admin, list(names), time.monotonic() + timeout_s):
        _check_partitions(topic, kafka.partitions, bootstrap)


def _await_topics(admin: KafkaAdminClient, names: list[str], deadline: float) -> list[dict[str, Any]]:
    """Describe topics once they have leaders; ask again while a node of the cluster does not know them yet."""
    while True:
        admin.wait_for_topics(names, timeout_ms=max(0, int(1000 * (deadline - time.monotonic()))))
        topics: list[dict[str, Any]] = admin.describe_topics(names)
        if not any(topic["error_code"] for topic in topics):
            return topics


def topic_id(bootstrap: str, topic: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return the id (UUID) of a topic; raise TopicError when there is no such topic."""
    return _request(bootstrap, timeout_s, lambda admin: str(_describe(admin, topic, bootstrap)["topic_id"]))


def describe_topic(bootstrap: str, topic: str, timeout_s: float = TIMEOUT_S) -> TopicState:
    """Return a topic's state; raise TopicError when there is no such topic."""
    return _request(bootstrap, timeout_s, lambda admin: _describe_state(admin, topic, bootstrap))


def _describe_state(admin: KafkaAdminClient, topic: str, bootstrap: str) -> TopicState:
    found = _describe(admin, topic, bootstrap)
    return TopicState(topic, str(found["topic_id"]), len(found["partitions"]), _cleanup_policy(admin, topic))


def _cleanup_policy(admin: KafkaAdminClient, topic: str) -> str:
    """Return a topic's cleanup.policy; "" from a broker without it (the embedded one), or without the right DESCRIBE_CONFIGS."""
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.errors import KafkaError

    try:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)], config_filter="all")
    except KafkaError as error:
        log.info("event=cleanup_policy_unknown topic=%s error=%r", topic, error)
        return ""
    policy: str = found.get("topic", {}).get(topic, {}).get("cleanup.policy", {}).get("value", "")
    return policy


def describe_partitions(bootstrap: str, topic: str, timeout_s: float = TIMEOUT_S) -> list[dict[str, Any]]:
    """Return Kafka's metadata of each partition (`partition_index`, `leader_id`, `isr_nodes` and so on). Raises TopicError."""
    return _request(bootstrap, timeout_s, lambda admin: list(_describe(admin, topic, bootstrap)["partitions"]))


def end_offsets(bootstrap: str, topic: str, timeout_s: float = TIMEOUT_S) -> dict[int, int]:
    """Return, for each partition, the offset up to which it can be read; raise TopicError when there is no such topic.

    It is the offset that the next record will get, or before that the first one of a transaction that is still open.

    The embedded broker answers with the first offset of the last Kafka batch plus one: right only when a batch is one record, as
    the emitter's are. With other producers use real Kafka.
    """
    return _request(bootstrap, timeout_s, lambda admin: _list_ends(admin, topic, bootstrap))


def _list_ends(admin: KafkaAdminClient, topic: str, bootstrap: str) -> dict[int, int]:
    from kafka import TopicPartition
    from kafka.admin import OffsetSpec

    partitions = [one["partition_index"] for one in _describe(admin, topic, bootstrap)["partitions"]]
    wanted = {TopicPartition(topic, number): OffsetSpec.LATEST for number in partitions}
    found = admin.list_partition_offsets(wanted, isolation_level="read_committed")
    return {partition.partition: int(found[partition].offset) for partition in sorted(found)}


def _request(bootstrap: str, timeout_s: float, request: Callable[[KafkaAdminClient], T]) -> T:
    """Return the result of `request` with an admin client; raise TopicError, which names the broker.

    kafka-python sends a request to any node it knows, a dead one too. It then avoids that node for a while, so a second request
    soon reaches a live one.
    """
    from kafka.errors import KafkaConnectionError, KafkaError

    from streams.brokers.clients import KafkaAdminClient

    limit = int(timeout_s * 1000)
    try:
        with KafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=limit, bootstrap_timeout_ms=limit) as admin:
            for _ in range(DEAD_NODES):
                with suppress(KafkaConnectionError):
                    return request(admin)
            return request(admin)
    except (KafkaError, OSError) as error:
        raise TopicError(
            f"broker {bootstrap}: {type(error).__name__}: {error}; is it running, and is the address right?"
        ) from error


def _describe(admin: KafkaAdminClient, topic: str, bootstrap: str) -> dict[str, Any]:
    found: dict[str, Any] = admin.describe_topics([topic])[0]
    if found["error_code"]:
        raise TopicError(
            f"broker {bootstrap}: no topic {topic} (Kafka error {found['error_code']}); create it with create_topics"
        )
    return found


def _check_partitions(topic: dict[str, Any], wanted: int, bootstrap: str) -> None:
    have = len(topic["partitions"])
    if have != wanted:
        raise TopicError(
            f"topic {topic['name']} on {bootstrap} has {have} partitions, kafka.partitions is {wanted}: "
            f"set kafka.partitions to {have}, or use another topic name"
        )
