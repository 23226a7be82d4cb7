"""Splits the body of POST /v1/events into its events, so that one that is no JSON costs only itself.

A body of valid JSON is split by msgspec. Any other is split by its quotes and brackets alone, without reading what is between
them: half an emoji, a control character or ten thousand brackets are then the fault of one event, and its check says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from streams.events.line_spans import DECODE_ERRORS
from streams.events.schema import BOM, SPACE, printable, strip_line

GZIP = b"\x1f\x8b"
ENVELOPE = 'the body must be {"events": [...]}, or one event a line with Content-Type application/x-ndjson'
_TWICE = 'the body has "events" twice'
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},"]', re.DOTALL)
_PAIRS = {b"]": b"[", b"}": b"{"}
_OPEN = frozenset(_PAIRS.values())
_BRACKETS = frozenset({*_PAIRS, *_OPEN, b","})


class BatchError(ValueError):
    """A body that is no batch; nothing of it was accepted. `status` is the HTTP status to answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Batch(msgspec.Struct):
    events: list[msgspec.Raw]


_batch_decoder = msgspec.json.Decoder(_Batch)


def split_lines(body: bytes, max_events: int) -> list[bytes]:
    """Return the lines of an NDJSON body, blank ones left out. Raises BatchError for more than `max_events`."""
    return _bounded([line for line in map(strip_line, body.split(b"\n")) if line], max_events)


def split_batch(body: bytes, max_events: int) -> list[bytes]:
    """Return the events of a body {"events": [...]}, each as its own JSON or what should be JSON.

    Raises BatchError when the body is none, when its brackets or quotes do not match, when it has "events" twice, or when it has
    more than `max_events`."""
    body = body.removeprefix(BOM)
    try:
        events = _batch_decoder.decode(body).events
        if body.count(b'"events"') > 1 and _count_lists(body) > 1:  # JSON's readers take the last one, without a word
            raise BatchError(422, _TWICE)
        return _bounded(list(map(bytes, events)), max_events)
    except DECODE_ERRORS as error:
        return _bounded(_split_by_brackets(body, error), max_events)


def _bounded(lines: list[bytes], max_events: int) -> list[bytes]:
    if len(lines) > max_events:
        raise BatchError(413, f"{len(lines)} events in one batch, at most {max_events} are allowed")
    return lines


def _split_by_brackets(body: bytes, error: Exception) -> list[bytes]:
    """Return the events of a body that is no JSON because of `error`. Raises BatchError where that is not in an event."""
    start = _find_list(body)
    if start is None:
        raise BatchError(422, f"{ENVELOPE}: {_describe_body(body, error)}")
    *events, (last, end) = _split_list(body, start)
    try:
        rest = _batch_decoder.decode(body[:start] + body[end:])
    except DECODE_ERRORS as outside:
        raise BatchError(422, f"{ENVELOPE}; beside the events: {printable(str(outside))}") from outside
    if rest.events:
        raise BatchError(422, _TWICE)
    found = [body[low:high].strip(SPACE) for low, high in (*events, (last, end))]
    return found if found != [b""] else []


def _describe_body(body: bytes, error: Exception) -> str:
    if body.startswith(GZIP):
        return "it is gzip: send Content-Encoding: gzip"
    return printable(str(error)) if body.strip(SPACE) else "it is empty"


def _find_list(body: bytes) -> int | None:
    """Return where the list of events begins, after its bracket; None when there is none."""
    return next(_find_lists(body), None)


def _count_lists(body: bytes) -> int:
    return sum(1 for _ in _find_lists(body))


def _find_lists(body: bytes) -> Iterator[int]:
    """Yield where each list under the body's own key "events" begins, after its bracket."""
    depth, key, key_end = 0, b"", 0
    for token in _TOKEN.finditer(body):
        if token[0] == b"[" and depth == 1 and key == b'"events"' and body[key_end : token.start()].strip(SPACE) == b":":
            yield token.end()
        if token[0] not in _BRACKETS:
            key, key_end = token[0], token.end()
        depth += (token[0] in _OPEN) - (token[0] in _PAIRS)


def _split_list(body: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Yield where each event of the list begins and ends. Raises BatchError where no bracket or quote says so."""
    open_brackets: list[bytes] = []
    index = 0
    for token in _TOKEN.finditer(body, start):
        match token[0]:
            case b"[" | b"{":
                open_brackets.append(token[0])
            case b"]" if not open_brackets:
                yield start, token.start()
                return
            case b"]" | b"}":
                if not open_brackets or open_brackets.pop() != _PAIRS[token[0]]:
                    raise BatchError(422, f"event {index}: its brackets do not match, at byte {token.start()} of the body")
            case b",":
                if not open_brackets:
                    yield start, token.start()
                    start, index = token.end(), index + 1
            case b'"':
                raise BatchError(422, f"event {index}: a text without its closing quote, from byte {token.start()} of the body")
            case _:
                pass
    raise BatchError(422, f"event {index}: the body ends before the list of events does")
