"""Runs from fetched responses: every record once from the fetch offset on, checksums verified, no gaps at transaction markers."""

from __future__ import annotations

import asyncio
import gc
import weakref

import crc32c
import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from faust.types import TP

from streams.store.offset_range import OffsetRange
from streams.worker.fetches import FetchedRun, UnreadableBatch, fetch_runs, to_offset_range, unpack_run

CONTROL = 0x20
"""The bit of a batch's attributes that marks the end of a transaction."""
ZERO = TopicPartition("events", 0)


def batch(first: int, values: list[bytes | None], compression: int = 0, producer: int = -1) -> bytes:
    """One Kafka batch that starts at an offset; in a transaction of `producer`, if that is given."""
    builder = DefaultRecordBatchBuilder(2, compression, producer >= 0, producer, 0, 0, 1 << 20)
    for number, value in enumerate(values):
        assert builder.append(number, timestamp=5000 + first + number, key=b"k", value=value, headers=[]) is not None
    built = bytearray(builder.build())
    built[:8] = first.to_bytes(8, "big")  # the base offset is outside the checksum
    return bytes(built)


def marker(offset: int, producer: int, *, commit: bool) -> bytes:
    """The control batch that ends a transaction of `producer`."""
    builder = DefaultRecordBatchBuilder(2, 0, True, producer, 0, 0, 1 << 20)
    builder.append(0, timestamp=5000, key=b"\0\0\0" + bytes([commit]), value=b"\0" * 6, headers=[])
    built = bytearray(builder.build())
    built[:8] = offset.to_bytes(8, "big")
    attributes = int.from_bytes(built[21:23], "big") | CONTROL
    built[21:23] = attributes.to_bytes(2, "big")
    built[17:21] = calc_crc32c(built[21:]).to_bytes(4, "big")
    return bytes(built)


def fetched(data: bytes, offset: int, aborted: list[tuple[int, int]] | None = None) -> PartitionRecords:
    """A response; `aborted` has the producer and the first offset of each aborted transaction."""
    return PartitionRecords(ZERO, MemoryRecords(data), aborted, offset, None, None, True, READ_COMMITTED)


@pytest.mark.parametrize("compression", range(5), ids=["plain", "gzip", "snappy", "lz4", "zstd"])
def test_all_batches_of_a_response_are_one_run(compression: int) -> None:
    run = unpack_run(0, fetched(batch(7, [b"a", None], compression) + batch(9, [b"c"], compression), 7))
    assert run.records == [(7, b"a"), (8, None), (9, b"c")]
    assert (run.first_offset, run.next_offset, run.timestamp_ms, run.size) == (7, 10, 5009, 2)


def test_each_record_has_its_own_time() -> None:
    run = unpack_run(0, fetched(batch(7, [b"a", None]) + batch(9, [b"c"]), 8))
    assert run.times_ms == [5008, 5009]
    times = to_offset_range([run]).record_times
    assert (times.offsets.tolist(), times.times_us.tolist()) == ([8, 9], [5_008_000, 5_009_000])


def test_records_of_a_topic_with_append_time_have_that_of_the_broker() -> None:
    appended = bytearray(batch(7, [b"a", b"b"]))
    appended[22] |= 8  # the timestamp type among the batch's attributes
    appended[35:43] = (9000).to_bytes(8, "big")
    appended[17:21] = calc_crc32c(bytes(appended[21:])).to_bytes(4, "big")
    assert unpack_run(0, fetched(bytes(appended), 7)).times_ms == [9000, 9000]


def test_records_before_the_fetch_offset_are_left_out() -> None:
    run = unpack_run(3, fetched(batch(5, [b"a", b"b", b"c"]), 6))
    assert (run.partition, run.records, run.first_offset, run.next_offset) == (3, [(6, b"b"), (7, b"c")], 6, 8)


def test_a_gap_before_the_first_record_shows_in_the_first_offset() -> None:
    assert unpack_run(0, fetched(batch(9, [b"a"]), 6)).first_offset == 9


def test_records_of_an_aborted_transaction_are_passed_over_and_are_no_gap() -> None:
    data = b"".join(
        [
            batch(4, [b"kept"], producer=1),
            batch(5, [b"dropped", b"too"], producer=2),
            marker(7, 2, commit=False),
            marker(8, 1, commit=True),
            batch(9, [b"next"], producer=2),
            marker(10, 2, commit=True),
        ]
    )
    run = unpack_run(0, fetched(data, 4, [(2, 5)]))
    assert run.records == [(4, b"kept"), (9, b"next")]
    assert (run.first_offset, run.next_offset, run.missing) == (4, 11, None)


def test_a_response_of_nothing_but_an_aborted_transaction_moves_on() -> None:
    run = unpack_run(0, fetched(batch(5, [b"a", b"b"], producer=2) + marker(7, 2, commit=False), 6, [(2, 5)]))
    assert (run.records, run.first_offset, run.next_offset, run.missing) == ([], 6, 8, None)


def test_a_record_that_compaction_removed_between_others_is_missing() -> None:
    assert unpack_run(0, fetched(batch(4, [b"a"]) + batch(5, [b"b"]), 4)).missing is None
    assert unpack_run(0, fetched(batch(4, [b"a"]) + batch(6, [b"c"]), 4)).missing == 5


def test_a_record_that_compaction_removed_within_a_batch_is_missing() -> None:
    shortened = bytearray(batch(4, [b"a", b"b"]))
    shortened[23:27] = (2).to_bytes(4, "big")  # the last offset of the batch stays when its last records go
    shortened[17:21] = calc_crc32c(shortened[21:]).to_bytes(4, "big")
    assert unpack_run(0, fetched(bytes(shortened), 4)).missing == 6
    assert unpack_run(0, fetched(bytes(shortened), 5)).missing == 6


def test_a_wrong_checksum_is_an_error() -> None:
    data = bytearray(batch(0, [b"value"]))
    data[-3] ^= 1
    with pytest.raises(CorruptRecordException, match="partition 0 at offset 0"):
        unpack_run(0, fetched(bytes(data), 0))


def test_what_is_before_a_wrong_checksum_is_delivered_first() -> None:
    damaged = bytearray(batch(8, [b"value"]))
    damaged[-3] ^= 1
    run = unpack_run(0, fetched(batch(7, [b"a"]) + bytes(damaged), 7))
    assert (run.records, run.next_offset) == ([(7, b"a")], 8)


def old_messages(magic: int, codec: int, first: int, values: list[bytes]) -> bytes:
    """Messages of the formats before Kafka 0.11, as a broker keeps them: compressed ones are wrapped in one message."""
    builder = LegacyRecordBatchBuilder(magic, codec, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number if codec else first + number, timestamp=5000 + number, key=b"k", value=value)
    built = bytearray(builder.build())
    if codec:  # the wrapper has the offset of its last message, which is outside the checksum
        built[:8] = (first + len(values) - 1).to_bytes(8, "big")
    return bytes(built)


@pytest.mark.parametrize("codec", range(4), ids=["plain", "gzip", "snappy", "lz4"])
def test_messages_of_the_old_formats_are_read_with_their_times(codec: int) -> None:
    run = unpack_run(0, fetched(old_messages(1, codec, 7, [b"a", b"b", b"c"]), 8))
    assert (run.records, run.times_ms) == ([(8, b"b"), (9, b"c")], [5001, 5002])
    assert (run.first_offset, run.next_offset, run.timestamp_ms, run.missing) == (8, 10, 5002, None)


def test_records_without_a_time_give_no_time() -> None:
    run = unpack_run(0, fetched(old_messages(0, 0, 0, [b"a", b"b"]), 0))
    assert (run.records, run.times_ms, run.timestamp_ms) == ([(0, b"a"), (1, b"b")], [-1, -1], None)
    timeless = bytearray(batch(0, [b"a"]))
    timeless[27:35] = timeless[35:43] = (-1).to_bytes(8, "big", signed=True)
    timeless[17:21] = calc_crc32c(bytes(timeless[21:])).to_bytes(4, "big")
    assert unpack_run(0, fetched(bytes(timeless), 0)).timestamp_ms is None


def mislabelled(first: int, codec: int) -> bytes:
    """One batch with a valid checksum whose header names a codec that its bytes are not in."""
    built = bytearray(batch(first, [b"a"]))
    built[22] |= codec
    built[17:21] = crc32c.crc32c(bytes(built[21:])).to_bytes(4, "big")
    return bytes(built)


@pytest.mark.parametrize("codec", [4, 5, 7], ids=["broken zstd", "unknown", "unknown too"])
def test_a_batch_that_cannot_be_unpacked_is_named_after_all_before_it_was_delivered(codec: int) -> None:
    data = batch(7, [b"a"]) + mislabelled(8, codec)
    run = unpack_run(3, fetched(data, 7))
    assert (run.records, run.next_offset) == ([(7, b"a")], 8)
    with pytest.raises(UnreadableBatch, match=r"topic events, partition 0, offset 8: .* cannot be unpacked"):
        unpack_run(3, fetched(mislabelled(8, codec), 8))


class Fetcher:
    """aiokafka's fetcher, reduced to its buffer."""

    _closed = False

    def __init__(self) -> None:
        self._subscriptions = SubscriptionState()
        self._subscriptions.assign_from_user([ZERO])
        self.assignment = self._subscriptions.subscription.assignment
        self._records: dict[TopicPartition, FetchResult] = {}
        self._wait_consume_future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def _notify(self, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)

    def _create_fetch_waiter(self) -> asyncio.Future[None]:
        return self.arrived

    def bring(self, data: bytes, offset: int) -> None:
        self._records[ZERO] = FetchResult(ZERO, partition_records=fetched(data, offset), assignment=self.assignment, backoff=0)
        self._notify(self.arrived)


def test_a_fetched_run_is_returned_whole_and_advances_the_position() -> None:
    async def scenario() -> tuple[dict[TP, FetchedRun], int, bool]:
        fetcher = Fetcher()
        fetcher.assignment.state_value(ZERO).seek(4)
        asyncio.get_running_loop().call_later(0.01, fetcher.bring, batch(4, [b"a", b"b"]), 4)
        runs = await fetch_runs(fetcher, {ZERO}, 5.0)  # type: ignore[arg-type]
        return runs, fetcher.assignment.state_value(ZERO)._position, fetcher._wait_consume_future.done()

    runs, position, asked_for_more = asyncio.run(scenario())
    assert [run.records for run in runs.values()] == [[(4, b"a"), (5, b"b")]]
    assert (position, asked_for_more) == (6, True)


def test_what_was_fetched_before_a_seek_is_dropped() -> None:
    async def scenario() -> dict[TP, FetchedRun]:
        fetcher = Fetcher()
        fetcher.assignment.state_value(ZERO).seek(1)
        fetcher.bring(batch(4, [b"a"]), 4)
        return await fetch_runs(fetcher, {ZERO}, 0.0)  # type: ignore[arg-type]

    assert asyncio.run(scenario()) == {}


@pytest.mark.parametrize("position", [4, 9], ids=["taken", "dropped after a seek"])
def test_a_response_is_freed_at_once_without_a_garbage_collection(position: int) -> None:
    async def scenario() -> bool:
        fetcher = Fetcher()
        fetcher.assignment.state_value(ZERO).seek(position)
        fetcher.bring(batch(4, [b"a"]), 4)
        left = weakref.ref(fetcher._records[ZERO]._partition_records)
        await fetch_runs(fetcher, {ZERO}, 0.0)  # type: ignore[arg-type]
        return left() is None

    gc.disable()
    try:
        assert asyncio.run(scenario())
    finally:
        gc.enable()


def test_an_offset_range_covers_its_runs_without_their_values() -> None:
    runs = [
        FetchedRun(2, [(5, b"a"), (6, None)], 5, 8, 1000, 3),
        FetchedRun(2, [], 8, 9, None, 3),
        FetchedRun(2, [(9, b"b")], 9, 10, 900, 3),
    ]
    assert to_offset_range(runs) == OffsetRange(2, 5, 10, 3, 1000, 3)
    assert to_offset_range(runs[1:2]) == OffsetRange(2, 8, 9, 0, None, 3)
