"""Runs of records as aiokafka's fetcher brought them, without an object a record.

aiokafka makes a `ConsumerRecord` of each record in Python, which costs more than all else on the way from the socket. Here a
fetched response is unpacked by its C extension into (offset, value) pairs at once. What a run covers is told by the batches
themselves, so the offsets of transaction markers are no gaps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from faust.types import TP

from streams.store.offset_range import Stretch

Records = list[tuple[int, bytes | None]]


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What one fetch brought of one partition: the records with first_offset <= offset < next_offset, as (offset, value).

    A tombstone has no value. `timestamp_ms` is when Kafka or its producer stamped the last record, None without records.
    `generation` counts the seeks: a run from before the last one is dropped, since what it holds is fetched again.
    """

    partition: int
    records: Records
    first_offset: int
    next_offset: int
    timestamp_ms: int | None = None
    generation: int = 0

    @property
    def size(self) -> int:
        """Bytes of all values."""
        return sum(map(len, filter(None, map(itemgetter(1), self.records))))

    def stamped(self, generation: int) -> Run:
        """The same run as fetched after the `generation`th seek."""
        return replace(self, generation=generation)


def cover(runs: Sequence[Run]) -> Stretch:
    """Return what these runs cover."""
    first, last = runs[0], runs[-1]
    stamped = max((run.timestamp_ms for run in runs if run.timestamp_ms is not None), default=None)
    records = sum(len(run.records) for run in runs)
    return Stretch(first.partition, first.first_offset, last.next_offset, records, stamped, first.generation)


async def fetch_runs(fetcher: Fetcher, partitions: Collection[TP], timeout: float) -> dict[TP, Run]:
    """Return what was fetched of these partitions, a run each; wait up to `timeout` s for it. See `Fetcher.fetched_records`."""
    deadline = time.monotonic() + timeout
    while True:
        if fetcher._subscriptions.reassignment_in_progress:
            await fetcher._subscriptions.wait_for_assignment()
        runs = _take_fetched(fetcher, partitions)
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


def _take_fetched(fetcher: Fetcher, partitions: Collection[TP]) -> dict[TP, Run]:
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
        elif (run := _take_run(tp, found)) is not None:
            runs[tp] = run
    return runs


def _take_run(tp: TP, found: FetchResult) -> Run | None:
    """Unpack a partition's response and move the position behind it; None where the position has moved meanwhile.

    A response holds an iterator over itself. Left so, each would keep its megabytes until the garbage collector comes.
    """
    fetched = found._partition_records
    try:
        if not found.check_assignment(tp) or not found.has_more():
            return None
        run = unpack_run(tp.partition, fetched)
        found._update_position()
        return run
    finally:
        fetched._records_iterator = None


def unpack_run(partition: int, fetched: PartitionRecords) -> Run:
    """Return the records of a response from its fetch offset on. Raises CorruptRecordException where a checksum is wrong."""
    wanted, first, stamped = fetched.next_fetch_offset, None, None
    records: Records = []
    while fetched._records.has_next():
        batch = fetched._records.next_batch()
        if fetched._check_crcs and not batch.validate_crc():
            raise CorruptRecordException(f"invalid checksum in partition {partition} at offset {fetched.next_fetch_offset}")
        if first is None:  # the oldest message format does not tell it
            first = max(wanted, getattr(batch, "base_offset", wanted))
        if not batch.is_control_batch:
            stamped = getattr(batch, "max_timestamp", stamped)
            records += [(record.offset, record.value) for record in batch if record.offset >= wanted]
        fetched.next_fetch_offset = max(fetched.next_fetch_offset, batch.next_offset)
    return Run(partition, records, wanted if first is None else first, fetched.next_fetch_offset, stamped)
