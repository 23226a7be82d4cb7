"""Fields of an impression that may hold any JSON, kept as text: how it was decoded, and what our own server sends along."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from streams.events.line_spans import REFUSED, Flags, Int64s, Spans, decode_objects
from streams.events.schema import is_deep

COMPANIONS = ("context", "response")
"""What comes with the impressions of our own server beside the schema's fields, in the order in which `extra` has them."""
ASIDE = ("decoding", *COMPANIONS)
ABSENT = msgspec.Raw(b"")
_FIRST = b',"%s":' % ASIDE[0].encode()
_QUOTED = [b'"%s"' % name.encode() for name in ASIDE]
_ESCAPED_LETTER = re.compile(rb"\\u00[67]")

_Aside: Any = msgspec.defstruct("Aside", [(name, msgspec.Raw, ABSENT) for name in ASIDE], gc=False)
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Aside)
_object_decoder = msgspec.json.Decoder(dict[str, Any] | None)
"""What msgspec raises for text that it refuses."""

Texts = Mapping[str, Sequence[bytes]]
"""The JSON of each of ASIDE, b"" where the field is absent."""


class Asides(NamedTuple):
    """`decoding` as it is stored and `extra` (a JSON object), null where there is none, and which rows hold something else."""

    decoding: pa.Array
    extra: pa.Array
    doubtful: Flags

    def spread(self, rows: Int64s) -> Asides:
        """Return these rows of it; nothing for -1."""
        take = pa.array(rows, mask=rows < 0)
        return Asides(self.decoding.take(take), self.extra.take(take), np.append(self.doubtful, False)[rows])


def read_asides(lines: Spans, rows: Int64s) -> tuple[Texts, Int64s]:
    """Return these fields of some lines, each of which is one JSON object, and which row of them is each line's.

    A line is read from the last `,"decoding":` on. In JSON that stands outside of any string, and where what follows ends the
    one object that it is in, and so does the line, that is the line's own. Where it does not the fields are absent, and so is
    one before that place: their keys then count as such that nobody read.
    """
    starts, ends = lines.starts[rows], lines.ends[rows].tolist()
    begins = np.maximum(list(map(lines.text.rfind, repeat(_FIRST), starts.tolist(), ends)), starts)
    numbers: dict[bytes, int] = {}
    tails = [lines.text[begin:end] for begin, end in zip(begins.tolist(), ends, strict=True)]
    which = np.array([numbers.setdefault(tail, len(numbers)) for tail in tails], np.int64)
    asides = [aside or _Aside() for aside in decode_objects(_decoder, [b"{" + tail[1:] for tail in numbers])]
    return {name: [bytes(getattr(aside, name)) for aside in asides] for name in ASIDE}, which


def may_repeat(line: bytes) -> bool:
    """Say whether a line may have one of these fields twice; its key may be escaped, as no writer of JSON does with a letter."""
    return any(line.count(name) > 1 for name in _QUOTED) or _ESCAPED_LETTER.search(line) is not None


def count_keys(texts: Texts) -> Int64s:
    """Return how often `":` stands in each row's fields and at their names."""
    rows = zip(*texts.values(), strict=True)
    return np.array([sum(1 + text.count(b'":') for text in row if text) for row in rows], np.int64)


def make_asides(texts: Texts) -> Asides:
    """Return the columns of these fields."""
    stored = {text: _decoding_text(text) for text in set(texts["decoding"])}
    decoding = [stored[text] for text in texts["decoding"]]
    doubtful = np.array([text is None for text in decoding], np.bool_)
    extra = pa.nulls(len(decoding), pa.string())
    if any(any(texts[name]) for name in COMPANIONS):
        made = [_extra(pair) if any(pair) else None for pair in zip(*(texts[name] for name in COMPANIONS), strict=True)]
        extra, doubtful = pa.array(made, pa.string()), doubtful | np.array([text == "" for text in made], np.bool_)
    return Asides(pa.array([text or None for text in decoding], pa.string()), extra, doubtful)


def _extra(texts: Sequence[bytes]) -> str:
    """Return the companions as a JSON object, "" where they are not UTF-8."""
    parts = [b'"%s":%s' % (name.encode(), text) for name, text in zip(COMPANIONS, texts, strict=True) if text]
    try:
        return (b"{" + b",".join(parts) + b"}").decode()
    except UnicodeDecodeError:
        return ""


def _decoding_text(text: bytes) -> str | None:
    """Return an object's JSON as it is stored, "" for null or nothing, None for what is neither or too deep."""
    try:
        value = _object_decoder.decode(text or b"null")
    except REFUSED:
        return None
    if value and is_deep(value):
        return None
    return "" if value is None else msgspec.json.encode(value).decode()
