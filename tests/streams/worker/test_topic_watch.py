"""Whether the log is still the same one: asked of a broker, said once, and no alarm where nobody can tell."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

import pytest

from streams.brokers.topics import KafkaSettings, TopicError, create_topics, topic_id
from streams.worker.topic_watch import LogWatch


@dataclass
class Shards:
    """What the shards were taken for."""

    topic_id: str = ""


def test_another_id_is_another_log_and_is_said_once(bootstrap: str, unique: str, caplog: pytest.LogCaptureFixture) -> None:
    kafka = KafkaSettings(topic=unique, quarantine_topic=f"{unique}.quarantine", partitions=1)
    create_topics(bootstrap, kafka)
    shards = Shards()
    watch = LogWatch(bootstrap, kafka, shards)  # type: ignore[arg-type]
    assert asyncio.run(watch.is_same())  # nothing was taken yet
    shards.topic_id = topic_id(bootstrap, unique)
    assert asyncio.run(watch.is_same())
    shards.topic_id = "of-before"
    caplog.set_level(logging.WARNING)
    assert [asyncio.run(watch.is_same()) for _ in range(2)] == [False, False]
    assert caplog.text.count("event=log_lost") == 1
    assert "old_topic_id=of-before" in caplog.text


def test_a_topic_that_is_gone_is_made_again(bootstrap: str, unique: str, caplog: pytest.LogCaptureFixture) -> None:
    kafka = KafkaSettings(topic=unique, quarantine_topic=f"{unique}.quarantine", partitions=1)
    caplog.set_level(logging.WARNING)
    assert not asyncio.run(LogWatch(bootstrap, kafka, Shards("of-before")).is_same())  # type: ignore[arg-type]
    assert "event=topic_made_again" in caplog.text
    assert topic_id(bootstrap, unique)


def test_a_broker_that_does_not_answer_is_no_lost_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> str:
        raise TopicError("broker 127.0.0.1:1: is it running?")

    monkeypatch.setattr("streams.worker.topic_watch.topic_id", away)
    monkeypatch.setattr("streams.worker.topic_watch.create_topics", away)
    caplog.set_level(logging.WARNING)
    watch = LogWatch("127.0.0.1:1", KafkaSettings(), Shards("x"))  # type: ignore[arg-type]
    assert [asyncio.run(watch.is_same()) for _ in range(2)] == [True, True]
    assert caplog.text.count("event=log_unknown") == 1
