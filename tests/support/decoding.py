"""Records decoded literally, one line after the other, to read what was sent and to compare the batch decoder with."""

from __future__ import annotations

from collections.abc import Iterable

from streams.events.line_decoder import parse_line
from streams.events.schema import DEFAULT_LIMITS, Decoded, EventSettings, Reason, Reject, strip_line


def decode_records(
    records: Iterable[tuple[int, bytes | None]], limits: EventSettings = DEFAULT_LIMITS, now: float | None = None
) -> Decoded:
    """Decode (offset, value) records; `now` (epoch seconds) turns on the check for future events."""
    decoded = Decoded()
    for offset, value in records:
        if value is None:
            decoded.add(Reject(Reason.MALFORMED, "record without a value", b"", None, None, offset, 0))
        for number, line in enumerate((value or b"").split(b"\n")):
            if stripped := strip_line(line):
                decoded.add(parse_line(stripped, limits, offset=offset, number=number, now=now))
    return decoded
