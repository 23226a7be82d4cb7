"""Whether the topic still is the log that the shards count: a broker that lost its disk offers the same name with another id.

The worker asks when it seeks, after every new connection and every few seconds; so a lost log is noticed before its successor is
taken for it, and a topic that is gone is made again for the producers to send their outbox to.
"""

from __future__ import annotations

import asyncio
import logging

from streams.brokers.topics import KafkaSettings, TopicError, create_topics, topic_id
from streams.store.held_shards import HeldShards

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0


class LogWatch:
    """Asks the broker for the topic's id. A lost log is logged once."""

    def __init__(self, bootstrap: str, kafka: KafkaSettings, shards: HeldShards) -> None:
        self._bootstrap = bootstrap
        self._kafka = kafka
        self._shards = shards
        self._missing = False
        self._told = ""

    async def is_same(self) -> bool:
        """Whether the topic has the id that the shards were taken for; True too where nobody can tell, which is logged once."""
        try:
            found = await asyncio.to_thread(self._find)
        except TopicError as error:
            if not self._missing:
                log.warning("event=log_unknown topic=%s error=%r", self._kafka.topic, str(error))
            self._missing = True
            return True
        self._missing = False
        if self._shards.topic_id in ("", found):
            return True
        if found != self._told:
            self._tell(found)
        return False

    def _tell(self, found: str) -> None:
        self._told = found
        log.error(
            "event=log_lost topic=%s topic_id=%s old_topic_id=%s action=%r",
            self._kafka.topic,
            found,
            self._shards.topic_id,
            "counting goes on from the new log's start; what producers send again is known by its ids",
        )

    def _find(self) -> str:
        try:
            return topic_id(self._bootstrap, self._kafka.topic, TIMEOUT_S)
        except TopicError:
            create_topics(self._bootstrap, self._kafka, TIMEOUT_S)
            log.warning("event=topic_made_again topic=%s", self._kafka.topic)
            return topic_id(self._bootstrap, self._kafka.topic, TIMEOUT_S)
