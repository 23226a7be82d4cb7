"""The range of log offsets that a decoded batch covers: all that counting needs to know of its Kafka records."""

from __future__ import annotations

from dataclasses import dataclass

from streams.counting.record_times import NO_TIMES, RecordTimes


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """The offsets first_offset <= offset < next_offset of one partition, which hold `records` records.

    `timestamp_ms` is the latest Kafka timestamp among them, None without records; `generation` is the number of the seek after
    which they were fetched. `record_times` are the timestamps of all of them.
    """

    partition: int
    first_offset: int
    next_offset: int
    records: int
    timestamp_ms: int | None
    generation: int
    record_times: RecordTimes = NO_TIMES
