"""Splits records into lines and notes where each lies in the log, before they are decoded in bulk.

A line is a span of one long text: most lines never become a Python object of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streams.events.schema import strip_line

Int64s = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for text that it cannot decode."""
_OPEN, _CLOSE, _BREAK = b"{}\n"


@dataclass(frozen=True, eq=False)
class Spans:
    """Lines text[start:end], in order, without white space around them and byte order marks in front; none is blank."""

    text: bytes
    starts: Int64s
    ends: Int64s

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def is_ascii(self) -> bool:
        return self.text.isascii()

    def take(self, rows: Int64s) -> list[bytes]:
        """Return the lines with these numbers."""
        text = self.text
        return [text[start:end] for start, end in zip(self.starts[rows].tolist(), self.ends[rows].tolist(), strict=True)]

    def select(self, rows: Int64s) -> Spans:
        """Return the lines with these numbers as spans, with one line break between any two."""
        if len(rows) == len(self) and (self.starts[1:] == self.ends[:-1] + 1).all():
            return self
        return join_lines(self.take(rows))


def join_lines(lines: Sequence[bytes]) -> Spans:
    """Return lines as spans, with one line break between any two."""
    sizes = np.fromiter(map(len, lines), np.int64, len(lines))
    ends = np.cumsum(sizes + 1) - 1
    return Spans(b"\n".join(lines), ends - sizes, ends)


@dataclass(frozen=True, eq=False)
class Lines:
    """Lines that are not blank, the offset of the record of each, and its number in that record.

    `braced` flags the lines that begin with { and end with }.
    """

    spans: Spans
    offsets: Int64s
    numbers: Int64s
    braced: Flags


def split_records(records: Sequence[tuple[int, bytes]]) -> Lines:
    """Return the lines of (offset, value) records, in log order."""
    text = b"\n".join([value for _, value in records])
    data = np.frombuffer(text, np.uint8)
    breaks = (data == _BREAK).nonzero()[0]
    # When every line break is between two braces, no line is blank or has white space around it.
    if not _is_braced(text) or (data[breaks - 1] != _CLOSE).any() or (data[breaks + 1] != _OPEN).any():
        return _split_line_by_line(records)
    offsets = np.array([offset for offset, _ in records], np.int64)
    bounds = np.concatenate([[-1], breaks, [len(text)]])
    spans = Spans(text, bounds[:-1] + 1, bounds[1:])
    braced = np.ones(len(spans), np.bool_)
    if len(spans) == len(records):
        return Lines(spans, offsets, np.zeros(len(spans), np.int64), braced)
    sizes = np.array([value.count(b"\n") + 1 for _, value in records], np.int64)
    numbers = np.arange(len(spans)) - (sizes.cumsum() - sizes).repeat(sizes)
    return Lines(spans, offsets.repeat(sizes), numbers, braced)


def _split_line_by_line(records: Sequence[tuple[int, bytes]]) -> Lines:
    texts, found = [], []
    for offset, value in records:
        for number, line in enumerate(value.split(b"\n")):
            if text := strip_line(line):
                texts.append(text)
                found.append((offset, number))
    locations = np.array(found, np.int64).reshape(-1, 2)
    return Lines(join_lines(texts), locations[:, 0], locations[:, 1], np.array(list(map(_is_braced, texts)), np.bool_))


def _is_braced(text: bytes) -> bool:
    return text.startswith(b"{") and text.endswith(b"}")


def decode_objects(decoder: msgspec.json.Decoder[Any], lines: Sequence[bytes]) -> list[Any]:
    """Return the decoded value of each line, None for a line that is refused. Each line begins with { and ends with }.

    `decode_lines` accepts two values in a line. With these braces no value spans lines and each line has at least one value; as
    many values as lines means one value each.
    """
    try:
        found: list[Any] = decoder.decode_lines(b"\n".join(lines))
    except DECODE_ERRORS:
        found = []
    return found if len(found) == len(lines) else [_decode_object(decoder, line) for line in lines]


def _decode_object(decoder: msgspec.json.Decoder[Any], line: bytes) -> Any:
    try:
        return decoder.decode(line)
    except DECODE_ERRORS:
        return None
