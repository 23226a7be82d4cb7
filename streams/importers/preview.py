"""A log before it is sent: what a replay would send, judged by the worker's own decoder, without a broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streams.events.line_decoder import parse_line
from streams.events.schema import DEFAULT_LIMITS, Event, EventSettings, Reason, Reject, printable
from streams.importers.log_files import LogFile, Place
from streams.importers.unmapped import read_unmapped

if TYPE_CHECKING:
    from streams.importers.mapping import Mapping

FIRST_LINES = 5
FIRST_REFUSED = 10
Check = Callable[[Event], tuple[Reason, str] | None]
"""Says why a running system would refuse an event that decodes, None where it would not."""


@dataclass(frozen=True)
class Refused:
    """A line that the worker would quarantine: where it is, the reason and the detail."""

    place: Place
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Preview:
    """What a replay would send. `types` counts the events that would count or wait, `reasons` the lines that would be refused.

    Times are in seconds since the epoch.
    """

    lines: int
    types: dict[str, int]
    reasons: dict[str, int]
    first_ts: float | None
    last_ts: float | None
    first_lines: list[str]
    first_refused: list[Refused]


def preview(
    path: Path, now: float, mapping: Mapping | None = None, limits: EventSettings = DEFAULT_LIMITS, check: Check | None = None
) -> Preview:
    """Read a whole log and judge each line, `now` (seconds since the epoch) for those in the future. Raises LogFileError.

    What takes more than one event to judge (a click without its impression, an event twice) is not seen here, but for what
    `check` knows of a running system.
    """
    types: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    first_lines: list[str] = []
    refused: list[Refused] = []
    sent, first_us, last_us = 0, None, None
    with LogFile(path, mapping) as lines:
        for sent, line in enumerate(lines, 1):  # noqa: B007 - the last one is their number
            if len(first_lines) < FIRST_LINES:
                first_lines.append(line.decode("utf-8", "backslashreplace"))
            found = parse_line(line, limits, now=now)
            if not isinstance(found, Reject):
                first_us = found.ts_us if first_us is None else min(first_us, found.ts_us)
                last_us = found.ts_us if last_us is None else max(last_us, found.ts_us)
            if (fault := _find_fault(found, line, check)) is not None:
                reasons[str(fault[0])] += 1
                if len(refused) < FIRST_REFUSED:
                    refused.append(Refused(lines.place_of(line), *fault))
            elif not isinstance(found, Reject):
                types[str(found.__struct_config__.tag)] += 1
    return Preview(
        lines=sent,
        types=dict(sorted(types.items())),
        reasons=dict(sorted(reasons.items())),
        first_ts=None if first_us is None else first_us / 1_000_000,
        last_ts=None if last_us is None else last_us / 1_000_000,
        first_lines=first_lines,
        first_refused=refused,
    )


def _find_fault(found: Event | Reject, line: bytes, check: Check | None) -> tuple[Reason, str] | None:
    """Return why a line would be refused; of a row that no mapping could read what is wrong with the row."""
    if not isinstance(found, Reject):
        return None if check is None else check(found)
    unmapped = read_unmapped(line)
    return found.reason, found.detail if unmapped is None else printable(unmapped.error)
