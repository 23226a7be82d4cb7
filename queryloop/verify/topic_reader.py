"""Reads one partition of the event topic from its beginning up to an offset, in no consumer group.

Only committed records are read. Records that are gone from the middle of the log are noted, since a recount without them proves
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from queryloop.verify.arrivals import LogRecord
from streams.brokers.connection import Address, asyncio_options
from streams.brokers.failures import explain
from streams.brokers.topics import TopicError, describe_partitions
from streams.events.schema import MAX_TS_US
from streams.worker.fetches import UnreadableBatch, committed_batches, fetch_unpacked, find_missing, unpack_batch

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition
    from aiokafka.consumer.fetcher import PartitionRecords

FETCH_BYTES = 8 * 1024 * 1024
SILENCE_S = 30.0
CONNECT_S = 10.0
POLL_MS = 1000
FOREVER_US = MAX_TS_US


class TopicReadError(RuntimeError):
    """The log cannot be read up to the offset; the text says how far it was read, and from which broker."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    """One response: its committed records, the offsets of batches that were passed over, and the offset after it."""

    next_offset: int
    records: list[LogRecord]
    passed: list[range]


def _to_log_record(record: Any) -> LogRecord:
    time_ms = record.timestamp  # None in the oldest message format
    return record.offset, None if time_ms is None or time_ms < 0 else time_ms * 1000, record.value


def _unpack(partition: int, fetched: PartitionRecords) -> _Fetched:
    begin = fetched.next_fetch_offset
    records: list[LogRecord] = []
    passed: list[range] = []
    for batch, counts in committed_batches(fetched):
        if not counts:
            passed.append(range(max(begin, batch.base_offset), batch.next_offset))
            continue
        unpacked = unpack_batch(fetched, batch, begin, _to_log_record)
        if unpacked is None:
            break
        records += unpacked
    return _Fetched(fetched.next_fetch_offset, records, passed)


@dataclass(frozen=True, slots=True)
class PartitionReader:
    """An open partition. `first` is the first offset that the log still has, `end` the one up to which it can be read.

    `missing` gets the first lost offset of each fetched response that lacks records, while they are read.
    """

    first: int
    end: int
    _consumer: AIOKafkaConsumer
    _partition: TopicPartition
    _run: Callable[[Coroutine[Any, Any, Any]], Any]
    missing: list[int] = field(default_factory=list)

    def read(self, next_offset: int) -> Iterator[LogRecord]:
        """Yield the records below `next_offset`. Raises TopicReadError when nothing arrives for SILENCE_S."""
        position, quiet_s = self.first, 0.0
        while position < next_offset:
            try:
                found = self._run(fetch_unpacked(self._consumer._fetcher, {self._partition}, POLL_MS / 1000, _unpack))
            except UnreadableBatch as error:
                raise TopicReadError(str(error)) from error
            fetched = found.get(self._partition, _Fetched(position, [], []))
            self._note_missing(fetched, range(position, min(fetched.next_offset, next_offset)))
            yield from (record for record in fetched.records if record[0] < next_offset)
            quiet_s = 0.0 if fetched.next_offset > position else quiet_s + POLL_MS / 1000
            position = max(position, fetched.next_offset)
            if quiet_s >= SILENCE_S:
                raise TopicReadError(
                    f"{self._partition}: nothing arrived after offset {position} for {SILENCE_S:g} s; wanted {next_offset}"
                )

    def _note_missing(self, fetched: _Fetched, covered: range) -> None:
        offsets = [record[0] for record in fetched.records if record[0] in covered]
        passed = [range(max(one.start, covered.start), min(one.stop, covered.stop)) for one in fetched.passed]
        missing = find_missing(covered, offsets, passed)
        if missing is not None:
            self.missing.append(missing)

    def removed_until_us(self, tolerance_us: int, next_offset: int) -> int | None:
        """Return a time (microseconds) that no removed event is later than, None when the log still has its beginning.

        An event is accepted at most `tolerance_us` ahead of the clock, and removed records are older than the first one left.
        """
        if self.first == 0:
            return None
        first = next(self.read(min(self.first + 1, next_offset)), None)
        self._consumer.seek(self._partition, self.first)
        return FOREVER_US if first is None or first[1] is None else first[1] + tolerance_us


@contextmanager
def open_partition(address: Address, topic: str, partition: int) -> Iterator[PartitionReader]:
    """Open a partition for reading. Raises TopicReadError with what is at fault when that is not possible."""
    from aiokafka import TopicPartition
    from aiokafka.errors import KafkaError

    place = TopicPartition(topic, partition)
    with asyncio.Runner() as runner:
        try:
            # Asked first, with the other library: aiokafka does not say why it cannot connect, or see the topic.
            describe_partitions(address, topic, CONNECT_S)
            consumer = runner.run(_start(address, place))
        except TopicError as error:
            raise TopicReadError(str(error)) from error
        except (KafkaError, OSError) as error:
            raise TopicReadError(explain(error, address)) from error
        try:
            first = runner.run(consumer.beginning_offsets([place]))[place]
            end = runner.run(consumer.end_offsets([place]))[place]
            consumer.seek(place, first)
            yield PartitionReader(first, end, consumer, place, runner.run)
        except KafkaError as error:
            raise TopicReadError(explain(error, address)) from error
        finally:
            runner.run(consumer.stop())


async def _start(address: Address, place: TopicPartition) -> AIOKafkaConsumer:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        **asyncio_options(address),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=50,
        isolation_level="read_committed",
    )
    try:
        await consumer.start()
    except BaseException:
        await consumer.stop()
        raise
    consumer.assign([place])
    return consumer
