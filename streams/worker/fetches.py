"""Fetched runs: the consecutive records of one fetch response, without one Python object per record.

aiokafka makes a `ConsumerRecord` of each record in Python, which costs more than all other steps from the socket on. Here its C
extension unpacks a whole response into (offset, value) pairs. The offsets that a run covers are read from Kafka's record batches,
so transaction markers and the records of aborted transactions are no gaps, while records that compaction removed are one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter, itemgetter
from typing import Any, TypeVar

import numpy as np
from aiokafka.consumer.fetcher import READ_COMMITTED, Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from faust.types import TP

from streams.counting.record_times import NO_TIMES, RecordTimes
from streams.store.offset_range import OffsetRange

Records = list[tuple[int, bytes | None]]
OFFSET_VALUE_AND_TIME = attrgetter("offset", "value", "timestamp")
Run = TypeVar("Run")
One = TypeVar("One")


class UnreadableBatch(RuntimeError):
    """A batch of records that cannot be unpacked, now or later; the text names topic, partition, offset and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class FetchedRun:
    """One partition's records of one fetch, with first_offset <= offset < next_offset, as pairs (offset, value).

    A tombstone's value is None. `times_ms` has the Kafka timestamp of each record (-1: it has none), `timestamp_ms` is the latest
    one, None where none has one. `generation` is the number of the seek before the fetch: a run from before the last seek is
    dropped, since its records are fetched again. `missing` is the first offset in
    this range whose record the log has lost, None without one.
    """

    partition: int
    records: Records
    first_offset: int
    next_offset: int
    timestamp_ms: int | None = None
    generation: int = 0
    missing: int | None = None
    times_ms: Sequence[int] = ()

    @property
    def size(self) -> int:
        """Bytes of all its values."""
        return sum(map(len, filter(None, map(itemgetter(1), self.records))))

    def with_generation(self, generation: int) -> FetchedRun:
        """Return this run as one fetched after the seek of that number."""
        return replace(self, generation=generation)


def to_offset_range(runs: Sequence[FetchedRun]) -> OffsetRange:
    """Return the offset range that consecutive runs of one partition cover together."""
    first, last = runs[0], runs[-1]
    timestamp_ms = max((run.timestamp_ms for run in runs if run.timestamp_ms is not None), default=None)
    records = sum(len(run.records) for run in runs)
    offsets = first.first_offset, last.next_offset
    return OffsetRange(first.partition, *offsets, records, timestamp_ms, first.generation, _record_times(runs))


def _record_times(runs: Sequence[FetchedRun]) -> RecordTimes:
    timed = [run for run in runs if run.times_ms]
    if not timed:
        return NO_TIMES
    offsets = np.array([offset for run in timed for offset, _ in run.records], np.int64)
    times_us = np.concatenate([np.array(run.times_ms, np.int64) for run in timed]) * 1000
    return RecordTimes(offsets, np.maximum(times_us, -1))


async def fetch_runs(fetcher: Fetcher, partitions: Collection[TP], timeout: float) -> dict[TP, FetchedRun]:
    """Return one run for each of these partitions that has fetched records; wait up to `timeout` seconds for the first."""
    return await fetch_unpacked(fetcher, partitions, timeout, unpack_run)


async def fetch_unpacked(
    fetcher: Fetcher, partitions: Collection[TP], timeout: float, unpack: Callable[[int, PartitionRecords], Run]
) -> dict[TP, Run]:
    """Return what `unpack` makes of each partition's response; wait up to `timeout` seconds for the first.

    It replaces aiokafka's `Fetcher.fetched_records`.
    """
    deadline = time.monotonic() + timeout
    while True:
        if fetcher._subscriptions.reassignment_in_progress:
            await fetcher._subscriptions.wait_for_assignment()
        runs = _pop_fetched(fetcher, partitions, unpack)
        left = deadline - time.monotonic()
        if runs or left <= 0:
            return runs
        waiter = fetcher._create_fetch_waiter()
        done, pending = await asyncio.wait([waiter], timeout=left)
        if not done or fetcher._closed:
            for one in pending:
                one.cancel()
            return {}
        waiter.result()  # raises when the group may not read the topic


def _pop_fetched(fetcher: Fetcher, partitions: Collection[TP], unpack: Callable[[int, PartitionRecords], Run]) -> dict[TP, Run]:
    runs: dict[TP, Run] = {}
    for tp in list(fetcher._records):
        if tp not in partitions:
            if not fetcher._subscriptions.is_assigned(tp):
                del fetcher._records[tp]
            continue
        found = fetcher._records[tp]
        if not isinstance(found, FetchResult) and runs:
            return runs  # the error is raised by the next call
        del fetcher._records[tp]
        fetcher._notify(fetcher._wait_consume_future)
        if not isinstance(found, FetchResult):
            found.check_raise()
        elif (run := _pop_run(tp, found, unpack)) is not None:
            runs[tp] = run
    return runs


def _pop_run(tp: TP, found: FetchResult, unpack: Callable[[int, PartitionRecords], Run]) -> Run | None:
    """Unpack a partition's response and advance its position; None when a seek has changed the position meanwhile.

    A response refers to itself by its iterator, which is cleared: else it would keep its megabytes until a garbage collection.
    """
    fetched = found._partition_records
    try:
        if not found.check_assignment(tp) or not found.has_more():
            return None
        run = unpack(tp.partition, fetched)
        found._update_position()
        return run
    finally:
        fetched._records_iterator = None


def unpack_run(partition: int, fetched: PartitionRecords) -> FetchedRun:
    """Return the committed records of a response from its fetch offset on, those before an unreadable batch if there are any.

    Raises CorruptRecordException for a wrong checksum, UnreadableBatch for an unknown codec or compressed data that is broken.
    """
    fetch_offset, first = fetched.next_fetch_offset, None
    records: Records = []
    times_ms: list[int] = []
    passed: list[range] = []
    for batch, counts in committed_batches(fetched):
        base_offset = max(fetch_offset, getattr(batch, "base_offset", fetch_offset))  # the oldest message format has none
        first = base_offset if first is None else first
        if counts:
            unpacked = unpack_batch(fetched, batch, fetch_offset, OFFSET_VALUE_AND_TIME)
            if unpacked is None:
                break
            records += [(offset, value) for offset, value, _ in unpacked]
            times_ms += [-1 if time_ms is None else time_ms for *_, time_ms in unpacked]
        else:
            passed.append(range(base_offset, batch.next_offset))
    covered = range(fetch_offset if first is None else first, fetched.next_fetch_offset)
    missing = find_missing(covered, list(map(itemgetter(0), records)), passed)
    latest_ms = max(times_ms, default=-1)
    timestamp_ms = None if latest_ms < 0 else latest_ms
    return FetchedRun(partition, records, covered.start, covered.stop, timestamp_ms, missing=missing, times_ms=times_ms)


def committed_batches(fetched: PartitionRecords) -> Iterator[tuple[Any, bool]]:
    """Yield each record batch of a response, and whether its records count; the response's position moves past it.

    Transaction markers and the records of aborted transactions do not count. It ends before a batch with a wrong checksum when
    others came before it, which are then delivered first. Raises CorruptRecordException when that batch is the first.
    """
    begin = fetched.next_fetch_offset
    while fetched._records.has_next():
        batch = fetched._records.next_batch()
        if fetched._check_crcs and not batch.validate_crc():
            if fetched.next_fetch_offset > begin:
                return
            place = f"partition {fetched._tp.partition} at offset {fetched.next_fetch_offset}"
            raise CorruptRecordException(f"invalid checksum in {place}")
        yield batch, not _is_aborted(fetched, batch) and not batch.is_control_batch
        fetched.next_fetch_offset = max(fetched.next_fetch_offset, batch.next_offset)


def unpack_batch(fetched: PartitionRecords, batch: Any, begin: int, convert: Callable[[Any], One]) -> list[One] | None:
    """Return the records of a batch from offset `begin` on, converted; None when it is unreadable and others came before it.

    Those are then delivered first, and the next fetch begins with this batch. Raises UnreadableBatch when it is the first.
    """
    try:
        return [convert(record) for record in batch if record.offset >= begin]
    except Exception as error:  # each codec's library has errors of its own
        if fetched.next_fetch_offset > begin:
            return None
        raise UnreadableBatch(_describe_unreadable(fetched, error)) from error


def _is_aborted(fetched: PartitionRecords, batch: Any) -> bool:
    """Return whether a batch belongs to an aborted transaction; the same steps as aiokafka's `_unpack_records`."""
    if fetched._isolation_level != READ_COMMITTED or batch.producer_id is None:
        return False
    fetched._consume_aborted_up_to(batch.base_offset)
    if batch.is_control_batch and fetched._contains_abort_marker(batch):
        fetched._aborted_producers.discard(batch.producer_id)
    return bool(batch.is_transactional and batch.producer_id in fetched._aborted_producers)


def find_missing(covered: range, offsets: Sequence[int], passed: Sequence[range]) -> int | None:
    """Return the first covered offset that is neither a record's nor in a batch that was passed over, None if there is none."""
    if len(offsets) + sum(map(len, passed)) == len(covered):
        return None
    present = {*offsets, *(offset for one in passed for offset in one)}
    return next((offset for offset in covered if offset not in present), None)


def _describe_unreadable(fetched: PartitionRecords, error: Exception) -> str:
    topic, partition = fetched._tp
    return (
        f"topic {topic}, partition {partition}, offset {fetched.next_fetch_offset}: these records cannot be unpacked "
        f"({type(error).__name__}: {error}). Nothing after them is counted. Queryloop reads gzip, snappy, lz4 and zstd: have the "
        "producer use one of them and remove the records with kafka-delete-records.sh, or update Queryloop"
    )
