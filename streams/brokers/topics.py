"""The topics: their settings, their creation, their ids and offsets.

A topic's id, not its name, identifies the log: a broker that lost its disk has the same name with offsets that start again at 0.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from streams.brokers.connection import Address, KafkaConnection, bootstrap_of, checked_bootstrap, client_options
from streams.brokers.failures import explain, explain_reason, principal

if TYPE_CHECKING:
    from streams.brokers.clients import KafkaAdminClient

log = logging.getLogger(__name__)

NAME = r"^[a-zA-Z0-9._-]{1,249}$"
TIMEOUT_S = 30.0
KAFKA_SESSION_S = 6.0
DEAD_NODES = 4
"""How many dead nodes of a cluster a request may reach, one after the other, before it fails."""

UNKNOWN_TOPIC, NOT_ALLOWED = 3, 29
"""Kafka's error codes of a topic that is not there, and of one that the user may not see."""

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


class TopicMissing(TopicError):
    """There is no topic of that name."""


class KafkaSettings(KafkaConnection, frozen=True, extra="forbid"):
    """Which broker has the log, how it is reached, and the names of its topics (section `kafka`)."""

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
        return None if bootstrap is None else checked_bootstrap(bootstrap)

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

    Only what is missing is created, so a user without the right Create can use topics that are there. Raises TopicError when the
    broker does not answer, a right is missing, or the event topic has another number of partitions: sessions would change shards.
    """
    address = kafka.at(bootstrap)
    _request(address, timeout_s, lambda admin: _create(admin, address, timeout_s))


def _create(admin: KafkaAdminClient, kafka: KafkaSettings, timeout_s: float) -> None:
    names = [kafka.topic, kafka.quarantine_topic]
    for topic in admin.describe_topics(names):
        if topic["error_code"] in (UNKNOWN_TOPIC, NOT_ALLOWED):
            _create_missing(admin, kafka, topic["name"], may_describe=topic["error_code"] != NOT_ALLOWED)
    for topic in _await_topics(admin, names, time.monotonic() + timeout_s):
        if topic["name"] == kafka.topic:
            _check_partitions(topic, kafka.partitions, bootstrap_of(kafka))


def _create_missing(admin: KafkaAdminClient, kafka: KafkaSettings, name: str, *, may_describe: bool) -> None:
    """Create a topic. Raises TopicError naming the right that is missing and how to allow it."""
    from kafka.errors import ClusterAuthorizationFailedError, TopicAlreadyExistsError, TopicAuthorizationFailedError

    wanted = {
        "num_partitions": kafka.partitions,
        "replication_factor": kafka.replication or -1,
        "configs": {"min.insync.replicas": str(kafka.min_insync)} if kafka.min_insync else {},
    }
    try:
        if may_describe:
            admin.create_topics({name: wanted})
            return
    except TopicAlreadyExistsError:
        return
    except (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        what = f"topic {name} does not exist, and {principal(kafka)} lacks the right Create on it"
        do = f"create it with {kafka.partitions} partitions, or allow {_acl(kafka, 'Create', name)}"
        raise TopicError(f"broker {bootstrap_of(kafka)}: {what}: {do}") from None
    raise TopicError(
        f"broker {bootstrap_of(kafka)}: {principal(kafka)} lacks the right Describe on topic {name}: "
        f"allow {_acl(kafka, 'Describe', name)} (docs/kafka.md lists what each process needs)"
    )


def _acl(kafka: KafkaSettings, right: str, topic: str) -> str:
    """Return the arguments of kafka-acls.sh that allow a right on a topic."""
    who = principal(kafka) if principal(kafka).startswith("User:") else "USER"
    return f"it: kafka-acls.sh --add --allow-principal {who} --operation {right} --topic {topic}"


def _await_topics(admin: KafkaAdminClient, names: list[str], deadline: float) -> list[dict[str, Any]]:
    """Describe topics once they have leaders; ask again while a node of the cluster does not know them yet."""
    while True:
        admin.wait_for_topics(names, timeout_ms=max(0, int(1000 * (deadline - time.monotonic()))))
        topics: list[dict[str, Any]] = admin.describe_topics(names)
        if not any(topic["error_code"] for topic in topics):
            return topics


def topic_id(address: Address, topic: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return the id (UUID) of a topic; raise TopicMissing when there is no such topic, TopicError when it cannot be asked for."""
    return _request(address, timeout_s, lambda admin: str(_describe(admin, topic, address)["topic_id"]))


def describe_topic(address: Address, topic: str, timeout_s: float = TIMEOUT_S) -> TopicState:
    """Return a topic's state; raise TopicMissing when there is no such topic, TopicError when it cannot be asked for."""
    return _request(address, timeout_s, lambda admin: _describe_state(admin, topic, address))


def _describe_state(admin: KafkaAdminClient, topic: str, address: Address) -> TopicState:
    found = _describe(admin, topic, address)
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


def check_group(kafka: KafkaSettings, timeout_s: float = TIMEOUT_S) -> None:
    """Ask for the group's offsets. Raises TopicError when the user may not use the group: its workers would wait for ever."""
    from kafka.errors import GroupAuthorizationFailedError, KafkaError

    def ask(admin: KafkaAdminClient) -> None:
        try:
            admin.list_group_offsets(kafka.group)
        except GroupAuthorizationFailedError:
            raise
        except KafkaError as error:
            log.info("event=group_not_asked group=%s reason=%r", kafka.group, explain_reason(error, kafka))

    _request(kafka, timeout_s, ask)


def describe_partitions(address: Address, topic: str, timeout_s: float = TIMEOUT_S) -> list[dict[str, Any]]:
    """Return Kafka's metadata of each partition (`partition_index`, `leader_id`, `isr_nodes` and so on). Raises TopicError."""
    return _request(address, timeout_s, lambda admin: list(_describe(admin, topic, address)["partitions"]))


def end_offsets(address: Address, topic: str, timeout_s: float = TIMEOUT_S) -> dict[int, int]:
    """Return, for each partition, the offset up to which it can be read; raise TopicError when there is no such topic.

    It is the offset that the next record will get, or before that the first one of a transaction that is still open.

    The embedded broker answers with the first offset of the last Kafka batch plus one: right only when a batch is one record, as
    the emitter's are. With other producers use real Kafka.
    """
    return _request(address, timeout_s, lambda admin: _list_ends(admin, topic, address))


def _list_ends(admin: KafkaAdminClient, topic: str, address: Address) -> dict[int, int]:
    from kafka import TopicPartition
    from kafka.admin import OffsetSpec

    partitions = [one["partition_index"] for one in _describe(admin, topic, address)["partitions"]]
    wanted = {TopicPartition(topic, number): OffsetSpec.LATEST for number in partitions}
    found = admin.list_partition_offsets(wanted, isolation_level="read_committed")
    return {partition.partition: int(found[partition].offset) for partition in sorted(found)}


def _request(address: Address, timeout_s: float, request: Callable[[KafkaAdminClient], T]) -> T:
    """Return the result of `request` with an admin client; raise TopicError, which names the broker.

    kafka-python sends a request to any node it knows, a dead one too. It then avoids that node for a while, so a second request
    soon reaches a live one.
    """
    from kafka.errors import KafkaConnectionError, KafkaError

    from streams.brokers.clients import KafkaAdminClient

    limit = int(timeout_s * 1000)
    options = client_options(address) | {"request_timeout_ms": limit, "bootstrap_timeout_ms": limit}
    try:
        with KafkaAdminClient(**options) as admin:
            for _ in range(DEAD_NODES):
                with suppress(KafkaConnectionError):
                    return request(admin)
            return request(admin)
    except (KafkaError, OSError) as error:
        raise TopicError(explain(error, address)) from error


def _describe(admin: KafkaAdminClient, topic: str, address: Address) -> dict[str, Any]:
    found: dict[str, Any] = admin.describe_topics([topic])[0]
    if found["error_code"] == UNKNOWN_TOPIC:
        raise TopicMissing(
            f"broker {bootstrap_of(address)}: no topic {topic} (Kafka error {UNKNOWN_TOPIC}); create it with create_topics"
        )
    if found["error_code"] == NOT_ALLOWED:
        raise TopicError(
            f"broker {bootstrap_of(address)}: {principal(address)} lacks the right Describe on topic {topic}: "
            "allow it (docs/kafka.md lists what each process needs)"
        )
    if found["error_code"]:
        raise TopicError(f"broker {bootstrap_of(address)}: topic {topic} cannot be described (Kafka error {found['error_code']})")
    return found


def _check_partitions(topic: dict[str, Any], wanted: int, bootstrap: str) -> None:
    have = len(topic["partitions"])
    if have != wanted:
        raise TopicError(
            f"topic {topic['name']} on {bootstrap} has {have} partitions, kafka.partitions is {wanted}: "
            f"set kafka.partitions to {have}, or use another topic name"
        )
