"""The rows that a test reads, as frozen dataclasses. Cheap to import, for annotations."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """The counts of one (query, item, position) over 14 UTC days, texts normalised, and the rates that follow from them.

    `smoothed_ctr` is the posterior mean under the position's prior; `coec` (clicks over expected clicks) is of (query, item) over
    all its positions, None where no click is expected.
    """

    query: str
    item: str
    position: int
    impressions: int
    clicks: int
    raw_ctr: float
    smoothed_ctr: float
    coec: float | None


@dataclass(frozen=True, slots=True)
class Successor:
    """How often `next_query` was the next search of a session after `query`; both normalised."""

    query: str
    next_query: str
    count: int


@dataclass(frozen=True, slots=True)
class Quarantined:
    """An event that could not be used: why, and its line (printable characters, the first 400 bytes)."""

    reason: str
    detail: str
    event_id: str | None
    raw: str
    partition: int
    offset: int
    line: int
