"""Lines of a run of records, and where each stands in the log: what is decoded in bulk is first told apart here.

A line is a span of one long text. Most are never a Python object of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streams.events.schema import SPACE

Int64s = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading JSON that cannot be read raises."""
_OPEN, _CLOSE, _BREAK = b"{}\n"


@dataclass(frozen=True, eq=False)
class Spans:
    """Lines text[start:end], in order, without white space around them; none is blank."""

    text: bytes
    starts: Int64s
    ends: Int64s

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def is_ascii(self) -> bool:
        return self.text.isascii()

    def take(self, rows: Int64s) -> list[bytes]:
        """Return some of the lines."""
        text = self.text
        return [text[start:end] for start, end in zip(self.starts[rows].tolist(), self.ends[rows].tolist(), strict=True)]

    def select(self, rows: Int64s) -> Spans:
        """Return some of the lines, with one line break between any two."""
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
    """Lines that are not blank; the record (offset) of each and its number there.

    `braced` says of each whether it begins with { and ends with }.
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
    # Where every line break stands between two braces, no line is blank or has white space around it.
    if not _is_braced(text) or (data[breaks - 1] != _CLOSE).any() or (data[breaks + 1] != _OPEN).any():
        return _split_each(records)
    offsets = np.array([offset for offset, _ in records], np.int64)
    bounds = np.concatenate([[-1], breaks, [len(text)]])
    spans = Spans(text, bounds[:-1] + 1, bounds[1:])
    braced = np.ones(len(spans), np.bool_)
    if len(spans) == len(records):
        return Lines(spans, offsets, np.zeros(len(spans), np.int64), braced)
    sizes = np.array([value.count(b"\n") + 1 for _, value in records], np.int64)
    numbers = np.arange(len(spans)) - (sizes.cumsum() - sizes).repeat(sizes)
    return Lines(spans, offsets.repeat(sizes), numbers, braced)


def _split_each(records: Sequence[tuple[int, bytes]]) -> Lines:
    texts, places = [], []
    for offset, value in records:
        for number, line in enumerate(value.split(b"\n")):
            if text := line.strip(SPACE):
                texts.append(text)
                places.append((offset, number))
    where = np.array(places, np.int64).reshape(-1, 2)
    return Lines(join_lines(texts), where[:, 0], where[:, 1], np.array(list(map(_is_braced, texts)), np.bool_))


def _is_braced(text: bytes) -> bool:
    return text.startswith(b"{") and text.endswith(b"}")


def decode_objects(decoder: msgspec.json.Decoder[Any], lines: Sequence[bytes]) -> list[Any]:
    """Return what the decoder makes of each line, None of one that it refuses. Each begins with { and ends with }.

    `decode_lines` lets two values share a line. None of these goes on in the next line, and each holds one value or more; when
    there are as many values as lines, each holds one.
    """
    try:
        found: list[Any] = decoder.decode_lines(b"\n".join(lines))
    except REFUSED:
        found = []
    return found if len(found) == len(lines) else [_decode_object(decoder, line) for line in lines]


def _decode_object(decoder: msgspec.json.Decoder[Any], line: bytes) -> Any:
    try:
        return decoder.decode(line)
    except REFUSED:
        return None
