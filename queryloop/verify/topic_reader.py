"""Reads one partition of the event topic from its beginning up to an offset, in no consumer group."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from queryloop.verify.arrivals import LogRecord
from streams.events.schema import MAX_TS_US

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition

FETCH_BYTES = 8 * 1024 * 1024
SILENCE_S = 30.0
POLL_MS = 1000
FOREVER_US = MAX_TS_US


class TopicReadError(RuntimeError):
    """The log cannot be read up to the offset; the text says how far it was read, and from which broker."""


@dataclass(frozen=True, slots=True)
class PartitionReader:
    """An open partition. `first` is the first offset that the log still has, `end` the one that the next record will get."""

    first: int
    end: int
    _consumer: AIOKafkaConsumer
    _partition: TopicPartition
    _run: Callable[[Coroutine[Any, Any, Any]], Any]

    def read(self, next_offset: int) -> Iterator[LogRecord]:
        """Yield the records below `next_offset`. Raises TopicReadError when nothing arrives for SILENCE_S."""
        position, quiet_s = self.first, 0.0
        while position < next_offset:
            records = self._run(self._consumer.getmany(self._partition, timeout_ms=POLL_MS)).get(self._partition, [])
            for record in records:
                if record.offset < next_offset:
                    yield record.offset, None if record.timestamp < 0 else record.timestamp * 1000, record.value
            before, position = position, self._run(self._consumer.position(self._partition))
            quiet_s = 0.0 if position > before else quiet_s + POLL_MS / 1000
            if quiet_s >= SILENCE_S:
                raise TopicReadError(
                    f"{self._partition}: nothing arrived after offset {position} for {SILENCE_S:g} s; wanted {next_offset}"
                )

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
def open_partition(bootstrap: str, topic: str, partition: int) -> Iterator[PartitionReader]:
    """Open a partition for reading. Raises TopicReadError when the broker does not answer."""
    from aiokafka import TopicPartition
    from aiokafka.errors import KafkaError

    place = TopicPartition(topic, partition)
    with asyncio.Runner() as runner:
        try:
            consumer = runner.run(_start(bootstrap, place))
        except (KafkaError, OSError) as error:
            raise TopicReadError(f"broker {bootstrap}: {error!r}; is it running, and is the address right?") from error
        try:
            first = runner.run(consumer.beginning_offsets([place]))[place]
            end = runner.run(consumer.end_offsets([place]))[place]
            consumer.seek(place, first)
            yield PartitionReader(first, end, consumer, place, runner.run)
        except KafkaError as error:
            raise TopicReadError(f"broker {bootstrap}, {place}: {error!r}") from error
        finally:
            runner.run(consumer.stop())


async def _start(bootstrap: str, place: TopicPartition) -> AIOKafkaConsumer:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="none",
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=50,
    )
    try:
        await consumer.start()
    except BaseException:
        await consumer.stop()
        raise
    consumer.assign([place])
    return consumer
