"""What we change in Faust's Kafka transport, so that counting is exact and cheap.

- `Consumer.perform_seek` seeks to the offsets that the shards hold, not to those that Kafka holds for the group: a shard's
  offsets commit in one transaction with its counts.
- `Consumer.getmany` delivers a whole fetched run of records as one message: Faust costs some 85 us a message.
- The consumer thread waits 50 ms for a fetch to fill, where Faust has 1,500 ms written into its code, and unpacks fetches itself.
- A broker that comes back may be another one under the old address: after every new connection the topic's id is asked again.
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

from streams.worker.fetches import Run, fetch_runs

log = logging.getLogger(__name__)

FETCH_MAX_WAIT_MS = 50
FETCH_MIN_BYTES = 524_288
"""The broker gathers as much before it answers, or until the wait is over: a run costs some 0.4 ms however short it is, and the
threads that count stand still for most of it."""

SeekOffsets = Callable[[set[TP], int], Awaitable[Mapping[TP, int]]]
"""Of the assigned partitions and the number of the seek; the runs that follow it carry that number."""
IsSameLog = Callable[[], Awaitable[bool]]


class LogTruncated(RuntimeError):
    """The same topic, by its id, ends before what was already counted (an unclean leader election); a person must decide."""


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread, with a fetch wait that suits a live product, and whole runs instead of records.

    `reconnected` says that a connection was made since it was last set to False.
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
        return consumer

    async def record_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Tell Kafka's group how far the shards are, for tools that look there. Raises KafkaError."""
        await self.call_thread(self._record_offsets, offsets)

    async def _record_offsets(self, offsets: Mapping[TP, int]) -> None:
        told = {TopicPartition(tp.topic, tp.partition): offset for tp, offset in offsets.items() if tp in self.assignment()}
        if told:
            await self._ensure_consumer().commit(told)

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[TP, Any]:  # of Run, where Faust has lists of records
        if not self.consumer.flow_active:
            return {}
        fetcher = consumer._fetcher
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        with fetcher._subscriptions.fetch_context():
            runs = await fetch_runs(fetcher, active_partitions, timeout or 0.0)
        connections = set(consumer._client._conns.values())
        if connections - self._connections:
            self.reconnected = True
        self._connections = connections
        return runs


class Consumer(driver.Consumer):
    """Faust's consumer, which asks `app.seek_offsets` where to read and delivers runs."""

    app: WorkerApp
    consumer_thread: ConsumerThread
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
        """Seek every assigned partition to the offset that its shard wants next."""
        self._sought_again.clear()
        await self._seek_wanted()

    async def _seek_wanted(self) -> None:
        async with self._seeking:
            self._expected = {}
            self.generation += 1
            self.consumer_thread.reconnected = False
            offsets = await self.app.seek_offsets(self.assignment(), self.generation)
            await self.seek_wait(offsets)
            self._expected = dict(offsets)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:
        """Yield each partition's fetched records as one message.

        What was fetched before a rebalance, a stop or a seek is dropped: flow resumes only after `perform_seek`, which fetches it
        again.
        """
        records, active = await self._wait_next_records(timeout)
        generation = self.app.consumer_generation_id
        if not records or self.should_stop or not await self._is_same_log():
            return
        runs = cast("Mapping[TP, Run]", records)
        for tp, run in runs.items():
            if not self.flow_active or self.app.consumer_generation_id != generation or tp not in self._expected:
                return
            if active is not None and tp not in active and tp not in self._buffered_partitions:
                continue
            if run.first_offset != self._expected[tp]:
                if tp not in self._sought_again:
                    await self._seek_again(tp, run.first_offset)
                    return
                self._refuse_truncated(tp, run.first_offset)
            self._sought_again.discard(tp)
            self._expected[tp] = run.next_offset
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
            yield tp, self._to_run_message(tp, run.stamped(self.generation))

    async def _is_same_log(self) -> bool:
        """Whether the topic is the one that the shards were asked about; else seek. Asked after every new connection."""
        if not self.consumer_thread.reconnected:
            return True
        self.consumer_thread.reconnected = False
        if await self.app.is_same_log():
            return True
        await self.perform_seek()
        return False

    async def _seek_again(self, tp: TP, offset: int) -> None:
        """Records came that were not expected: let the shards decide anew where to read, by the topic's id.

        They may be from before a seek: Kafka's client fetches a partition as soon as it is assigned, from where the group stands.
        Behind what was read: the broker lost its log, or, if they come again, its end. Ahead of it: the log has a gap; then they
        come again, are delivered, and the shard refuses them.
        """
        log.warning("event=unexpected_offset partition=%d offset=%d expected=%d", tp.partition, offset, self._expected[tp])
        await self._seek_wanted()
        self._sought_again.add(tp)

    def _refuse_truncated(self, tp: TP, offset: int) -> None:
        """Raise LogTruncated where the log was sought and its first records are still behind what was counted."""
        if (wanted := self._expected[tp]) > offset:
            raise LogTruncated(
                f"{tp.topic}-{tp.partition} ends before offset {wanted}, which was counted: the broker lost its end"
            )

    def _to_run_message(self, tp: TP, run: Run) -> ConsumerMessage:
        generation = self.app.consumer_generation_id
        message = ConsumerMessage(
            tp.topic, tp.partition, run.next_offset - 1, 0.0, 0, [], None, None, None, 0, 0, tp, generation_id=generation
        )
        message.value = run  # type: ignore[assignment]  # the raw codec passes it on as it is
        return message


class Transport(driver.Transport):
    """Faust's aiokafka transport with our consumer."""

    Consumer = Consumer


class Tables(TableManager):
    """Faust's table manager without the second that it waits for tables to be declared: we have none."""

    async def on_start(self) -> None:
        """Go on at once."""
        await self._update_channels()
        await self.recovery.start()


class WorkerApp(faust.App):
    """A Faust app on our transport.

    `seek_offsets` says where each assigned partition is read from, `is_same_log` whether the topic still is the one it then was.
    """

    logger = logging.getLogger("faust.app")

    def __init__(self, *args: Any, seek_offsets: SeekOffsets, is_same_log: IsSameLog, **kwargs: Any) -> None:
        super().__init__(*args, TableManager=Tables, **kwargs)
        self.seek_offsets = seek_offsets
        self.is_same_log = is_same_log

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    async def record_offsets(self, offsets: Mapping[TP, int]) -> None:
        """Tell Kafka's group how far the shards are. Raises KafkaError."""
        await cast(Consumer, self.consumer).consumer_thread.record_offsets(offsets)

    def find_end(self, tp: TP) -> int | None:
        """The offset that a partition's next record gets, as the last fetch told; None before one, or if it is not assigned."""
        if tp not in self.consumer.assignment():
            return None
        try:
            return cast("int | None", self.consumer.highwater(tp))
        except (AssertionError, ConsumerNotStarted):  # aiokafka asserts the assignment, which just moved
            return None
