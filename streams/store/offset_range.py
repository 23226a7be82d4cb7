"""The range of log offsets that a decoded batch covers: all that counting needs to know of its Kafka records."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """The offsets first_offset <= offset < next_offset of one partition, which hold `records` records.

    `timestamp_ms` is the latest Kafka timestamp among them, None without records; `generation` is the number of the seek after
    which they were fetched.
    """

    partition: int
    first_offset: int
    next_offset: int
    records: int
    timestamp_ms: int | None
    generation: int
