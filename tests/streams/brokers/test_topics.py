"""Topics: created once with the right partitions, identified by id, with clear errors when they are not as set."""

from __future__ import annotations

import uuid

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from pydantic import ValidationError

from streams.brokers.broker import Broker
from streams.brokers.topics import KafkaSettings, TopicError, create_topics, describe_partitions, end_offsets, topic_id
from streams.runtime.processes import free_port


def settings(name: str, partitions: int = 3) -> KafkaSettings:
    return KafkaSettings(topic=name, quarantine_topic=f"{name}.quarantine", partitions=partitions)


def test_both_topics_are_created_with_their_partitions(bootstrap: str, unique: str) -> None:
    create_topics(bootstrap, settings(unique))
    with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        found = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics([unique, f"{unique}.quarantine"])}
    assert found == {unique: 3, f"{unique}.quarantine": 3}


def test_creating_twice_changes_nothing(bootstrap: str, unique: str) -> None:
    create_topics(bootstrap, settings(unique))
    first = topic_id(bootstrap, unique)
    create_topics(bootstrap, settings(unique))
    assert topic_id(bootstrap, unique) == first


def test_replication_and_min_insync_are_set_at_creation(kafka_broker: Broker, unique: str) -> None:
    wanted = settings(unique).model_copy(update={"replication": 1, "min_insync": 1})
    create_topics(kafka_broker.bootstrap, wanted)
    with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap) as admin:
        found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, unique, ["min.insync.replicas"])])
    (setting,) = found["topic"][unique].values()
    assert (setting["value"], setting["config_source"]) == ("1", "DYNAMIC_TOPIC_CONFIG")
    assert [len(one["replica_nodes"]) for one in describe_partitions(kafka_broker.bootstrap, unique)] == [1, 1, 1]


def test_more_copies_than_nodes_are_refused_with_the_brokers_words(kafka_broker: Broker, unique: str) -> None:
    with pytest.raises(TopicError, match="InvalidReplicationFactor"):
        create_topics(kafka_broker.bootstrap, settings(unique).model_copy(update={"replication": 3}))


def test_another_number_of_partitions_is_refused(bootstrap: str, unique: str) -> None:
    create_topics(bootstrap, settings(unique))
    with pytest.raises(TopicError, match=rf"{unique} on .* has 3 partitions, kafka\.partitions is 5: set kafka\.partitions to 3"):
        create_topics(bootstrap, settings(unique, 5))


def test_a_quarantine_topic_may_have_any_number_of_partitions(bootstrap: str, unique: str) -> None:
    with KafkaAdminClient(bootstrap_servers=bootstrap) as admin:
        admin.create_topics({f"{unique}.quarantine": {"num_partitions": 1, "replication_factor": 1}})
    create_topics(bootstrap, settings(unique))
    found = {name: len(describe_partitions(bootstrap, name)) for name in (unique, f"{unique}.quarantine")}
    assert found == {unique: 3, f"{unique}.quarantine": 1}


def test_topics_that_are_there_are_not_asked_for_again(bootstrap: str, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_topics(bootstrap, settings(unique))
    asked: list[object] = []
    monkeypatch.setattr(KafkaAdminClient, "create_topics", lambda self, topics: asked.append(topics))
    create_topics(bootstrap, settings(unique))
    assert asked == []


def test_a_topic_made_anew_has_another_id(bootstrap: str, unique: str) -> None:
    ids = set()
    for name in (unique, f"{unique}-2"):
        create_topics(bootstrap, settings(name))
        ids.add(topic_id(bootstrap, name))
    assert len({uuid.UUID(one) for one in ids}) == 2


def test_end_offsets_count_the_records_of_each_partition(bootstrap: str, unique: str) -> None:
    create_topics(bootstrap, settings(unique))
    assert end_offsets(bootstrap, unique) == {0: 0, 1: 0, 2: 0}
    producer = KafkaProducer(bootstrap_servers=bootstrap, batch_size=0)
    for _ in range(4):
        producer.send(unique, b"x", partition=1)
    producer.close()
    assert end_offsets(bootstrap, unique) == {0: 0, 1: 4, 2: 0}


def test_a_topic_that_is_not_there_is_named(bootstrap: str, unique: str) -> None:
    for ask in (topic_id, end_offsets):
        with pytest.raises(TopicError, match=f"no topic {unique}"):
            ask(bootstrap, unique)


def test_a_broker_that_does_not_answer_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    for ask in (
        lambda: topic_id(address, "t", timeout_s=0.5),
        lambda: end_offsets(address, "t", timeout_s=0.5),
        lambda: create_topics(address, settings("t"), timeout_s=0.5),
    ):
        with pytest.raises(TopicError, match=f"broker {address}.*is it running"):
            ask()


@pytest.mark.parametrize(
    "wrong",
    [
        {"partitions": 0},
        {"topic": "a b"},
        {"topic": ""},
        {"session_timeout_s": 5, "broker": "kafka"},
        {"session_timeout_s": 0.5},
        {"broker": "rabbit"},
        {"bootstrap": ""},
        {"x": 1},
    ],
)
def test_settings_that_kafka_would_refuse_are_refused_here(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        KafkaSettings.model_validate(wrong)
