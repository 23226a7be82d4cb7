"""A log before it is sent: what a replay would send, judged by the worker's own decoder, without a broker."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from streams.events.line_decoder import parse_line
from streams.events.schema import DEFAULT_LIMITS, EventSettings, Reason, Reject, printable
from streams.importers.log_files import LogFile
from streams.importers.unmapped import UNMAPPED

if TYPE_CHECKING:
    from streams.importers.mapping import Mapping

FIRST_LINES = 5
FIRST_REFUSED = 10


class _Unmapped(msgspec.Struct, tag_field="type", tag=UNMAPPED):
    row: int
    error: str


_unmapped_decoder = msgspec.json.Decoder(_Unmapped)


@dataclass(frozen=True)
class Refused:
    """A line that the worker would quarantine: its number among the lines and, of an unreadable row, its number in its file."""

    line: int
    row: int | None
    reason: Reason
    detail: str


@dataclass(frozen=True)
class Preview:
    """What a replay would send. `types` counts the events that decode, `reasons` the lines that do not; times in seconds."""

    lines: int
    types: dict[str, int]
    reasons: dict[str, int]
    first_ts: float | None
    last_ts: float | None
    first_lines: list[str]
    first_refused: list[Refused]


def preview(path: Path, now: float, mapping: Mapping | None = None, limits: EventSettings = DEFAULT_LIMITS) -> Preview:
    """Read a whole log and judge each line, `now` (seconds since the epoch) for those in the future. Raises LogFileError.

    What takes more than one event to judge (a click without its impression, an event twice) is not seen here.
    """
    types: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    first_lines: list[str] = []
    refused: list[Refused] = []
    number, first_us, last_us = 0, None, None
    with LogFile(path, mapping) as lines:
        for number, line in enumerate(lines, 1):
            if len(first_lines) < FIRST_LINES:
                first_lines.append(line.decode("utf-8", "backslashreplace"))
            found = parse_line(line, limits, now=now)
            if isinstance(found, Reject):
                reasons[str(found.reason)] += 1
                if len(refused) < FIRST_REFUSED:
                    refused.append(_refused(number, line, found))
                continue
            types[str(found.__struct_config__.tag)] += 1
            first_us = found.ts_us if first_us is None else min(first_us, found.ts_us)
            last_us = found.ts_us if last_us is None else max(last_us, found.ts_us)
    return Preview(
        lines=number,
        types=dict(sorted(types.items())),
        reasons=dict(sorted(reasons.items())),
        first_ts=None if first_us is None else first_us / 1_000_000,
        last_ts=None if last_us is None else last_us / 1_000_000,
        first_lines=first_lines,
        first_refused=refused,
    )


def _refused(number: int, line: bytes, reject: Reject) -> Refused:
    """Of a row that could not be read its place and what is wrong with it, else what the decoder says."""
    try:
        unmapped = _unmapped_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return Refused(number, None, reject.reason, reject.detail)
    return Refused(number, unmapped.row, reject.reason, printable(unmapped.error))
