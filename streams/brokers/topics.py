"""The topics: what they are called, how they are created, and which log they currently stand for.

A topic's id, not its name, identifies the log: a broker that lost its disk offers the same name with offsets that start anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

if TYPE_CHECKING:
    from streams.brokers.clients import KafkaAdminClient

NAME = r"^[a-zA-Z0-9._-]{1,249}$"
TIMEOUT_S = 30.0
KAFKA_SESSION_S = 6.0
DEAD_NODES = 4
"""Nodes of a cluster that may be down, one after the other, before a question to it fails."""

T = TypeVar("T")


class TopicError(RuntimeError):
    """A topic that cannot be created or read as the settings want it; the text names topic, broker and what to do."""


class KafkaSettings(BaseModel, frozen=True, extra="forbid"):
    """Where the log is and what it is called (section `kafka`)."""

    bootstrap: str | None = Field(default=None, min_length=1, description="host:port of an external broker; overrides `broker`")
    broker: Literal["embedded", "kafka"] = Field(
        default="embedded", description="the broker to run when there is no external one"
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
        description="copies that must hold an event before it is acknowledged; unset: the broker's default",
    )
    session_timeout_s: float = Field(
        default=45.0,
        ge=1.0,
        description="silence after which a worker is given up; real Kafka takes 6 at least, the embedded broker waits half of it",
    )
    group: str = Field(default="queryloop", min_length=1, description="consumer group of the workers")

    @model_validator(mode="after")
    def _refuse_short_session(self) -> Self:
        if self.broker == "kafka" and self.session_timeout_s < KAFKA_SESSION_S:
            raise ValueError(
                f"kafka.session_timeout_s is {self.session_timeout_s:g}, Apache Kafka refuses one under {KAFKA_SESSION_S:g}"
            )
        return self


def create_topics(bootstrap: str, kafka: KafkaSettings, timeout_s: float = TIMEOUT_S) -> None:
    """Create the event and quarantine topics where they do not exist, and wait until they have leaders.

    Raises TopicError when the broker does not answer or a topic is there with another number of partitions: sessions would move
    between shards.
    """
    _ask(bootstrap, timeout_s, lambda admin: _create(admin, bootstrap, kafka, timeout_s))


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
    """Describe topics once they have leaders. In a cluster the node asked next may not have heard of them: then ask again."""
    while True:
        admin.wait_for_topics(names, timeout_ms=max(0, int(1000 * (deadline - time.monotonic()))))
        topics: list[dict[str, Any]] = admin.describe_topics(names)
        if not any(topic["error_code"] for topic in topics):
            return topics


def topic_id(bootstrap: str, topic: str, timeout_s: float = TIMEOUT_S) -> str:
    """Return the id (UUID) of the log behind a topic's name; raise TopicError when there is no such topic."""
    return _ask(bootstrap, timeout_s, lambda admin: str(_describe(admin, topic, bootstrap)["topic_id"]))


def describe_partitions(bootstrap: str, topic: str, timeout_s: float = TIMEOUT_S) -> list[dict[str, Any]]:
    """Return Kafka's metadata of each partition (`partition_index`, `leader_id`, `isr_nodes` and so on). Raises TopicError."""
    return _ask(bootstrap, timeout_s, lambda admin: list(_describe(admin, topic, bootstrap)["partitions"]))


def end_offsets(bootstrap: str, topic: str, timeout_s: float = TIMEOUT_S) -> dict[int, int]:
    """Return, for each partition, the offset that the next record will get; raise TopicError when there is no such topic.

    The embedded broker answers with the first offset of the last Kafka batch plus one: right only where a batch holds one record,
    as the emitter's do. Behind other producers use `Emitter.positions`, or real Kafka.
    """
    return _ask(bootstrap, timeout_s, lambda admin: _list_ends(admin, topic, bootstrap))


def _list_ends(admin: KafkaAdminClient, topic: str, bootstrap: str) -> dict[int, int]:
    from kafka import TopicPartition
    from kafka.admin import OffsetSpec

    partitions = [one["partition_index"] for one in _describe(admin, topic, bootstrap)["partitions"]]
    found = admin.list_partition_offsets({TopicPartition(topic, number): OffsetSpec.LATEST for number in partitions})
    return {place.partition: int(found[place].offset) for place in sorted(found)}


def _ask(bootstrap: str, timeout_s: float, question: Callable[[KafkaAdminClient], T]) -> T:
    """Return what `question` gets from an admin client; say which broker it was when it fails.

    kafka-python sends a request to any node that it has heard of, a dead one too. That node it then avoids for a while, so asking
    again soon reaches a live one.
    """
    from kafka.errors import KafkaConnectionError, KafkaError

    from streams.brokers.clients import KafkaAdminClient

    limit = int(timeout_s * 1000)
    try:
        with KafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=limit, bootstrap_timeout_ms=limit) as admin:
            for _ in range(DEAD_NODES):
                with suppress(KafkaConnectionError):
                    return question(admin)
            return question(admin)
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
