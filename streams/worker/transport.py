"""Our changes to Faust's Kafka transport, which make counting exact and cheap.

- `Consumer.perform_seek` seeks to the offsets in the shards, not to those that Kafka has for the group: a shard's offsets commit
  in one transaction with its counts.
- `Consumer.getmany` delivers a whole fetched run of records as one message: Faust costs some 85 us per message.
- Only committed records are read: an aborted transaction counts nothing, an open one is waited for.
- The consumer thread waits at most 50 ms for a fetch to fill, where Faust hard-codes 1,500 ms, and unpacks fetches itself.
- A broker that answers again may be another one at the old address: after every new connection the topic's id is checked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import ConsumerStoppedError
from faust.exceptions import ConsumerNotStarted
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from streams.store.progress import LogEnd
from streams.worker.fetches import FetchedRun, fetch_runs

log = logging.getLogger(__name__)

FETCH_MAX_WAIT_MS = 50
FETCH_MIN_BYTES = 524_288
"""The broker collects so many bytes before it answers, or until the wait is over: a run costs some 0.4 ms however short it is,
and blocks the counting threads for most of that."""

SeekOffsets = Callable[[set[TP], int], Awaitable[Mapping[TP, int]]]
"""Returns the offset to read from for each assigned partition, without those that must wait because their shard is in use; its
second argument is the number of the seek (the generation)."""
IsSameTopic = Callable[[], Awaitable[bool]]


class LogTruncated(RuntimeError):
    """The topic has the same id but ends before an offset already counted (an unclean leader election); a person must decide."""


class LogHole(RuntimeError):
    """Records are gone from the middle of the log (compaction removes them); what is counted after them would lack them."""


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread with a short fetch wait, which returns whole runs of committed records.

    `reconnected` becomes true with every new connection to a broker; the consumer sets it back to false.
    """

    logger = logging.getLogger("faust.consumer")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reconnected = False
        self._connections: set[object] = set()

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        consumer._fetch_min_bytes = FETCH_MIN_BYTES
        consumer._isolation_level = "read_committed"  # Faust sets it only together with transactions of its own
        return consumer

    def find_end(self, tp: TP) -> LogEnd | None:
        """Return the end of an assigned partition at its last fetch, None before one. Raises AssertionError if not assigned."""
        consumer = self._ensure_consumer()
        end, stable = consumer.highwater(tp), consumer.last_stable_offset(tp)
        return None if end is None else LogEnd(end if stable is None or stable < 0 else stable, end)

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commit offsets of assigned partitions to the consumer group, for monitoring tools. Raises KafkaError."""
        await self.call_thread(self._commit_assigned, offsets)

    async def _commit_assigned(self, offsets: Mapping[TP, int]) -> None:
        assigned = {TopicPartition(tp.topic, tp.partition): offset for tp, offset in offsets.items() if tp in self.assignment()}
        if assigned:
            await self._ensure_consumer().commit(assigned)

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TP, Any]:  # of FetchedRun, where Faust has lists of records
        if not self.consumer.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        with fetcher._subscriptions.fetch_context():
            waiting = cast(Consumer, self.consumer).waiting
            runs = await fetch_runs(fetcher, active_partitions - waiting, timeout or 0.0)
        connections = set(consumer._client._conns.values())
        if connections - self._connections:
            self.reconnected = True
        self._connections = connections
        return runs


class Consumer(driver.Consumer):
    """Faust's consumer, which reads from the offsets that `app.seek_offsets` returns and delivers runs."""

    app: WorkerApp
    consumer_thread: ConsumerThread
    waiting: frozenset[TP] = frozenset()
    """Assigned partitions that are not read for now."""
    logger = logging.getLogger("faust.consumer")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.generation = 0
        self._seeking = asyncio.Lock()
        self._expected: dict[TP, int] = {}
        self._sought_again: set[TP] = set()

    def _new_consumer_thread(self) -> ConsumerThread:
        self.consumer_thread = ConsumerThread(self, loop=self.loop, beacon=self.beacon)
        return self.consumer_thread

    async def perform_seek(self) -> None:
        """Seek every assigned partition to the next offset of its shard."""
        self._sought_again.clear()
        await self._seek_assigned()

    async def _seek_assigned(self) -> None:
        async with self._seeking:
            self._expected = {}
            self.generation += 1
            self.consumer_thread.reconnected = False
            assigned = frozenset(self.assignment())
            offsets = await self.app.seek_offsets(set(assigned), self.generation)
            self.waiting = assigned - offsets.keys()
            await self.seek_wait(offsets)
            self._expected = dict(offsets)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Yield each partition's fetched records as one message.

        Records fetched before a rebalance, a stop or a seek are dropped: flow resumes only after `perform_seek`, and then they
        are fetched again.
        """
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if not records or self.should_stop or not await self._is_same_topic():
            return
        runs = cast("Mapping[TP, FetchedRun]", records)
        for tp, run in runs.items():
            if not self.flow_active or self.app.consumer_generation_id != generation or tp not in self._expected:
                return
            if active is not None and tp not in active and tp not in self._buffered_partitions:
                continue
            if run.first_offset != self._expected[tp]:
                if tp not in self._sought_again:
                    await self._seek_again(tp, run.first_offset)
                    return
                self._refuse(tp, run.first_offset)
            if run.missing is not None:
                raise _hole(tp, run.missing)
            self._sought_again.discard(tp)
            self._expected[tp] = run.next_offset
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            yield tp, self._to_run_message(tp, run.with_generation(self.generation))

    async def _is_same_topic(self) -> bool:
        """Return whether the topic still has the id at the last seek; seek anew if not. Checked after every new connection."""
        if not self.consumer_thread.reconnected:
            return True
        self.consumer_thread.reconnected = False
        if await self.app.is_same_topic():
            return True
        await self.perform_seek()
        return False

    async def _seek_again(self, tp: TP, offset: int) -> None:
        """Seek anew after a run with an unexpected offset, so that the shards choose where to read by the topic's id.

        The run may be from before a seek: Kafka's client fetches a partition as soon as it is assigned, from the group's offset.
        If its offset is too low, the broker lost its log or, if the run is fetched again, the end of its log. If it is too high,
        records are gone, if the run is fetched again.
        """
        log.warning("event=unexpected_offset partition=%d offset=%d expected=%d", tp.partition, offset, self._expected[tp])
        await self._seek_assigned()
        self._sought_again.add(tp)

    def _refuse(self, tp: TP, offset: int) -> None:
        """Raise LogTruncated or LogHole: the records fetched after a seek still start before or after the offset sought."""
        if (expected := self._expected[tp]) > offset:
            raise LogTruncated(
                f"{tp.topic}-{tp.partition} ends before offset {expected}, which was counted: the broker lost its end"
            )
        raise _hole(tp, expected)

    def _to_run_message(self, tp: TP, run: FetchedRun) -> ConsumerMessage:
        generation = self.app.consumer_generation_id
        message = ConsumerMessage(
            tp.topic, tp.partition, run.next_offset - 1, 0.0, 0, [], None, None, None, 0, 0, tp, generation_id=generation
        )
        message.value = run  # type: ignore[assignment]  # the raw codec passes it on unchanged
        return message


def _hole(tp: TP, offset: int) -> LogHole:
    return LogHole(
        f"{tp.topic}-{tp.partition} has no record at offset {offset}, though it has later ones: compaction removes records, and "
        "counts without them would be wrong; set cleanup.policy=delete, and count a topic that has all its records"
    )


class Transport(driver.Transport):
    """Faust's aiokafka transport with our consumer."""

    Consumer = Consumer


class Tables(TableManager):
    """Faust's table manager without its wait of a second for tables to be declared, since there are none."""

    async def on_start(self) -> None:
        """Start without that wait."""
        await self._update_channels()
        await self.recovery.start()


class WorkerApp(faust.App):
    """A Faust app on our transport.

    `seek_offsets` returns the offset to read each assigned partition from, `is_same_topic` whether the topic still has the id
    that it had at the last seek.
    """

    logger = logging.getLogger("faust.app")

    def __init__(self, *args: Any, seek_offsets: SeekOffsets, is_same_topic: IsSameTopic, **kwargs: Any) -> None:
        super().__init__(*args, TableManager=Tables, **kwargs)
        self.seek_offsets = seek_offsets
        self.is_same_topic = is_same_topic

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    async def commit_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Commit offsets of assigned partitions to the consumer group. Raises KafkaError."""
        await cast(Consumer, self.consumer).consumer_thread.commit_offsets(offsets)

    def find_end(self, tp: TP) -> LogEnd | None:
        """Return the end of a partition's log at the last fetch; None before one, or if the partition is not assigned."""
        if tp not in self.consumer.assignment():
            return None
        try:
            return cast(Consumer, self.consumer).consumer_thread.find_end(tp)
        except (AssertionError, ConsumerNotStarted):  # aiokafka asserts the assignment, which has just changed
            return None
