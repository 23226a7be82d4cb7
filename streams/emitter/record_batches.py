"""How event lines become Kafka records: which partition a session has, and how lines are batched into one NDJSON value.

Faust and Kafka cost far more per record than per event, so lines of one partition are sent together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

MAX_RECORD_BYTES = 900_000
"""Bytes of one record's value, so that record and overhead stay below Kafka's default limit of 1 MB."""


class Line(NamedTuple):
    """One event line, its session, and the clock (seconds) when it was emitted."""

    line: bytes
    session_id: str
    emitted_at: float


@lru_cache(maxsize=65_536)
def partition_of(session_id: str, partitions: int) -> int:
    """Return a session's partition: murmur2 of its id, as Kafka's own clients compute it, so that other producers agree."""
    from kafka.partitioner.default import murmur2

    return int(murmur2(session_id.encode()) & 0x7FFFFFFF) % partitions


@dataclass(slots=True, eq=False)
class Record:
    """Lines that are sent together. `key`, `oldest_at`, `first_number`: session, emission time and number of the first line."""

    partition: int
    key: bytes
    oldest_at: float
    lines: list[bytes] = field(default_factory=list)
    size: int = 0
    first_number: int = 0

    @property
    def value(self) -> bytes:
        """The record's value: NDJSON without a final line break."""
        return b"\n".join(self.lines)


class Batcher:
    """Open records, one a partition. A record is full at `max_lines` lines or before it would exceed `max_bytes`."""

    def __init__(self, max_lines: int, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self._max_lines = max_lines
        self._max_bytes = max_bytes
        self._open: dict[int, Record] = {}

    def add(self, line: bytes, session_id: str, partition: int, emitted_at: float, number: int = 0) -> Record | None:
        """Add a line to its partition's record; return a record that is full now, None when there is none.

        A line that does not fit closes the open record; a line that fills its record closes that one. One line never does both:
        it would be the only line of a new record, and when one line fills a record no record ever stays open.
        """
        record = self._open.get(partition)
        closed = None
        if record is not None and record.size + len(line) + 1 > self._max_bytes:
            closed, record = record, None
        if record is None:
            record = self._open[partition] = Record(partition, session_id.encode(), emitted_at, first_number=number)
        record.lines.append(line)
        record.size += len(line) + 1
        if closed is None and len(record.lines) >= self._max_lines:
            closed = self._open.pop(partition)
        return closed

    def take_due(self, before: float) -> list[Record]:
        """Close and return the records whose first line was emitted at `before` or earlier."""
        old = [record.partition for record in self._open.values() if record.oldest_at <= before]
        return [self._open.pop(partition) for partition in old]

    def oldest_at(self) -> float | None:
        """Return when the first line of any open record was emitted, None when none is open."""
        return min((record.oldest_at for record in self._open.values()), default=None)

    def lowest_number(self) -> int | None:
        """Return the lowest number of a line in an open record, None when none is open."""
        return min((record.first_number for record in self._open.values()), default=None)

    def __len__(self) -> int:
        return sum(len(record.lines) for record in self._open.values())
