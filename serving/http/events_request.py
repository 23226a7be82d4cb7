"""What becomes of the events of POST /v1/events: each is checked and emitted, or refused by index and reason."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.http.impressions import EventSink
from streams.events.line_decoder import parse_line
from streams.events.schema import EventError, EventSettings, Reject


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
