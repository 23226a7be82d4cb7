"""Watches whether the topic is still the log that the shards count: a broker that lost its disk has the same name with a new id.

The worker checks when it seeks, after every new connection and every few seconds. So a lost log is noticed before its successor
is counted as its continuation, and a topic that was deleted is created again for the producers to send their outbox to. A topic
that got more partitions, or compaction, stops the worker: what it would count from then on would be wrong.
"""

from __future__ import annotations

import asyncio
import logging

from streams.brokers.topics import KafkaSettings, TopicError, TopicMissing, TopicState, create_topics, describe_topic
from streams.store.held_shards import HeldShards

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0


class TopicWatch:
    """Compares the topic's id at the broker with the one that the shards count. A lost log is reported once."""

    def __init__(self, kafka: KafkaSettings, shards: HeldShards) -> None:
        self._kafka = kafka
        self._shards = shards
        self._is_unknown = False
        self._reported = ""

    async def is_same(self) -> bool:
        """Return whether the topic has the id that the shards were assigned for.

        True also while the broker does not say the id; that is logged once. Raises TopicUnfit when the topic cannot be counted.
        """
        try:
            state = await asyncio.to_thread(self._find_topic)
        except TopicError as error:
            if not self._is_unknown:
                log.warning("event=log_unknown topic=%s error=%r", self._kafka.topic, str(error))
            self._is_unknown = True
            return True
        self._is_unknown = False
        state.check(self._kafka.partitions)
        found = state.topic_id
        if self._shards.topic_id in ("", found):
            return True
        if found != self._reported:
            self._report(found)
        return False

    def _report(self, found: str) -> None:
        self._reported = found
        log.error(
            "event=log_lost topic=%s topic_id=%s old_topic_id=%s action=%r",
            self._kafka.topic,
            found,
            self._shards.topic_id,
            "counting continues from the start of the new log; events that producers send again are recognised by their ids",
        )

    def _find_topic(self) -> TopicState:
        try:
            return describe_topic(self._kafka, self._kafka.topic, TIMEOUT_S)
        except TopicMissing:
            create_topics(self._kafka.bootstrap or "", self._kafka, TIMEOUT_S)
            log.warning("event=topic_made_again topic=%s", self._kafka.topic)
            return describe_topic(self._kafka, self._kafka.topic, TIMEOUT_S)
