"""The body of POST /v1/events: a batch of events, each checked and emitted, or refused by index and reason."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from serving.http.impressions import EventSink
from streams.events.line_decoder import parse_line
from streams.events.schema import SPACE, EventError, EventSettings, Reject

NDJSON = ("ndjson", "jsonl", "text/plain")


class BatchError(ValueError):
    """A body that is no batch; nothing of it was accepted."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused event: its index in the batch, the reason code, and what is wrong."""

    index: int
    reason: str
    detail: str


@dataclass(slots=True)
class BatchResult:
    """The outcome of a batch. `full` is set when the emitter's buffer filled up: no event after the first `seen` was read."""

    accepted: int = 0
    seen: int = 0
    rejected: list[Refusal] = field(default_factory=list)
    full: str | None = None


class _Batch(msgspec.Struct):
    events: list[msgspec.Raw]


_batch_decoder = msgspec.json.Decoder(_Batch)


def split_batch(body: bytes, content_type: str, max_events: int) -> list[bytes]:
    """Return the events of a body: NDJSON (blank lines skipped) by its content type or text/plain, as beacons send it, else
    {"events": [...]}.

    Raises BatchError when it is neither, or has more than `max_events`."""
    if any(kind in content_type for kind in NDJSON):
        lines = [line for line in (raw.strip(SPACE) for raw in body.split(b"\n")) if line]
    else:
        try:
            lines = [bytes(raw).replace(b"\n", b" ") for raw in _batch_decoder.decode(body).events]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BatchError(
                422, f'the body must be {{"events": [...]}}, or one event a line with Content-Type application/x-ndjson: {error}'
            ) from error
    if len(lines) > max_events:
        raise BatchError(413, f"{len(lines)} events in one batch, at most {max_events} are allowed")
    return lines


def accept_events(lines: list[bytes], sink: EventSink, limits: EventSettings, now: float) -> BatchResult:
    """Emit each good event to `sink` as it is, refuse the others. `now` is the time in epoch seconds."""
    result = BatchResult()
    for index, line in enumerate(lines):
        event = parse_line(line, limits, now=now)
        if isinstance(event, Reject):
            result.rejected.append(Refusal(index, event.reason.value, event.detail))
        else:
            try:
                sink.emit(event)
                result.accepted += 1
            except EventError as error:
                result.rejected.append(Refusal(index, error.reason.value, error.detail))
            except RuntimeError as error:  # QueueFull, or the emitter is closed
                result.full = str(error)
                return result
        result.seen += 1
    return result
