"""What consecutive records of one partition cover, without their values: all that counting needs once they are decoded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stretch:
    """What consecutive runs of one partition cover, without their values: all that is needed of them once they are decoded.

    `records` is how many there are; the rest is as in `Run`.
    """

    partition: int
    first_offset: int
    next_offset: int
    records: int
    timestamp_ms: int | None
    generation: int
