"""The topic watch: a lost log is reported once, a deleted topic created again, and an unreachable broker no alarm."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from streams.brokers.broker import Broker
from streams.brokers.clients import KafkaAdminClient
from streams.brokers.topics import KafkaSettings, TopicError, TopicUnfit, create_topics, topic_id
from streams.worker.topic_watch import TopicWatch


@dataclass
class Shards:
    """Shards that were assigned for a topic."""

    topic_id: str = ""


def test_another_topic_id_is_another_log_and_is_logged_once(
    bootstrap: str, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = KafkaSettings(bootstrap=bootstrap, topic=unique, quarantine_topic=f"{unique}.quarantine", partitions=1)
    create_topics(bootstrap, kafka)
    shards = Shards()
    watch = TopicWatch(kafka, shards)  # type: ignore[arg-type]
    assert asyncio.run(watch.is_same())  # nothing is assigned yet
    shards.topic_id = topic_id(bootstrap, unique)
    assert asyncio.run(watch.is_same())
    shards.topic_id = "of-before"
    caplog.set_level(logging.WARNING)
    assert [asyncio.run(watch.is_same()) for _ in range(2)] == [False, False]
    assert caplog.text.count("event=log_lost") == 1
    assert "old_topic_id=of-before" in caplog.text


def test_a_deleted_topic_is_created_again(bootstrap: str, unique: str, caplog: pytest.LogCaptureFixture) -> None:
    kafka = KafkaSettings(bootstrap=bootstrap, topic=unique, quarantine_topic=f"{unique}.quarantine", partitions=1)
    caplog.set_level(logging.WARNING)
    assert not asyncio.run(TopicWatch(kafka, Shards("of-before")).is_same())  # type: ignore[arg-type]
    assert "event=topic_made_again" in caplog.text
    assert topic_id(bootstrap, unique)


def test_a_topic_that_got_more_partitions_cannot_be_counted_on(bootstrap: str, unique: str) -> None:
    kafka = KafkaSettings(topic=unique, quarantine_topic=f"{unique}.quarantine", partitions=3)
    create_topics(bootstrap, kafka)
    before = kafka.model_copy(update={"partitions": 2})
    with pytest.raises(TopicUnfit, match=f"topic {unique} has 3 partitions, and is counted in 2 shards"):
        asyncio.run(TopicWatch(before.at(bootstrap), Shards()).is_same())  # type: ignore[arg-type]


def test_a_topic_that_is_compacted_meanwhile_cannot_be_counted_on(kafka_broker: Broker, unique: str) -> None:
    kafka = KafkaSettings(topic=unique, quarantine_topic=f"{unique}.quarantine", partitions=1)
    create_topics(kafka_broker.bootstrap, kafka)
    watch = TopicWatch(kafka.at(kafka_broker.bootstrap), Shards())  # type: ignore[arg-type]
    assert asyncio.run(watch.is_same())
    with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, unique, {"cleanup.policy": "compact,delete"})])
    with pytest.raises(TopicUnfit, match=r"cleanup\.policy=compact,delete: compaction keeps only the last record of a session"):
        asyncio.run(watch.is_same())


def test_a_broker_that_does_not_answer_is_no_lost_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> str:
        raise TopicError("broker 127.0.0.1:1: is it running?")

    monkeypatch.setattr("streams.worker.topic_watch.describe_topic", away)
    monkeypatch.setattr("streams.worker.topic_watch.create_topics", away)
    caplog.set_level(logging.WARNING)
    watch = TopicWatch(KafkaSettings(bootstrap="127.0.0.1:1"), Shards("x"))  # type: ignore[arg-type]
    assert [asyncio.run(watch.is_same()) for _ in range(2)] == [True, True]
    assert caplog.text.count("event=log_unknown") == 1
