"""Pass-through JSON: fields of an impression that may be any JSON and are stored as text (`decoding`, `context`, `response`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from streams.events.line_spans import DECODE_ERRORS, Flags, Int64s, Spans, decode_objects
from streams.events.schema import is_too_deep

EXTRA_FIELDS = ("context", "response")
"""Fields that our own server sends with an impression and the schema does not know, in their order in `extra`."""
PASS_THROUGH = ("decoding", *EXTRA_FIELDS)
ABSENT = msgspec.Raw(b"")
_DECODING_KEY = b',"%s":' % PASS_THROUGH[0].encode()
_QUOTED_NAMES = [b'"%s"' % name.encode() for name in PASS_THROUGH]
_ESCAPED_LETTER = re.compile(rb"\\u00[67]")

_PassThrough: Any = msgspec.defstruct("PassThrough", [(name, msgspec.Raw, ABSENT) for name in PASS_THROUGH], gc=False)
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_PassThrough)
_object_decoder = msgspec.json.Decoder(dict[str, Any] | None)

Texts = Mapping[str, Sequence[bytes]]
"""The JSON of each field of PASS_THROUGH, b"" where it is absent."""


class PassThroughColumns(NamedTuple):
    """`decoding` as it is stored and `extra` (a JSON object), null where absent, and flags of rows that need the strict check."""

    decoding: pa.Array
    extra: pa.Array
    needs_strict: Flags

    def take_rows(self, rows: Int64s) -> PassThroughColumns:
        """Return these rows; nulls and no flag for row -1."""
        take = pa.array(rows, mask=rows < 0)
        return PassThroughColumns(self.decoding.take(take), self.extra.take(take), np.append(self.needs_strict, False)[rows])


def read_pass_through(lines: Spans, rows: Int64s) -> tuple[Texts, Int64s]:
    """Read these fields of some lines; return the distinct values, and for each line the index of its own.

    Each line is one JSON object. It is read from its last `,"decoding":` on, because many lines end alike and equal ends
    are read once. In valid JSON that key is outside of any string. When the text from there on closes exactly one object and the
    line ends with it, the key is the line's own. Otherwise the fields are taken as absent, and so is a field before that
    key: the count of keys then shows that a field was not read.
    """
    starts, ends = lines.starts[rows], lines.ends[rows].tolist()
    begins = np.maximum(list(map(lines.text.rfind, repeat(_DECODING_KEY), starts.tolist(), ends)), starts)
    numbers: dict[bytes, int] = {}
    tails = [lines.text[begin:end] for begin, end in zip(begins.tolist(), ends, strict=True)]
    which = np.array([numbers.setdefault(tail, len(numbers)) for tail in tails], np.int64)
    found = [one or _PassThrough() for one in decode_objects(_decoder, [b"{" + tail[1:] for tail in numbers])]
    return {name: [bytes(getattr(one, name)) for one in found] for name in PASS_THROUGH}, which


def may_repeat_field(line: bytes) -> bool:
    """Return whether a line may have one of these fields twice; an escaped letter, which no JSON writer makes, may hide a key."""
    return any(line.count(name) > 1 for name in _QUOTED_NAMES) or _ESCAPED_LETTER.search(line) is not None


def count_keys(texts: Texts) -> Int64s:
    """Return how often `":` occurs in the fields of each row, their names included."""
    rows = zip(*texts.values(), strict=True)
    return np.array([sum(1 + text.count(b'":') for text in row if text) for row in rows], np.int64)


def make_pass_through(texts: Texts) -> PassThroughColumns:
    """Return the columns that store these fields."""
    stored = {text: _stored_decoding(text) for text in set(texts["decoding"])}
    decoding = [stored[text] for text in texts["decoding"]]
    needs_strict = np.array([text is None for text in decoding], np.bool_)
    extra = pa.nulls(len(decoding), pa.string())
    if any(any(texts[name]) for name in EXTRA_FIELDS):
        made = [_join_extra(pair) if any(pair) else None for pair in zip(*(texts[name] for name in EXTRA_FIELDS), strict=True)]
        extra, needs_strict = pa.array(made, pa.string()), needs_strict | np.array([text == "" for text in made], np.bool_)
    return PassThroughColumns(pa.array([text or None for text in decoding], pa.string()), extra, needs_strict)


def _join_extra(texts: Sequence[bytes]) -> str:
    """Return the fields of EXTRA_FIELDS as one JSON object, "" where they are not UTF-8."""
    parts = [b'"%s":%s' % (name.encode(), text) for name, text in zip(EXTRA_FIELDS, texts, strict=True) if text]
    try:
        return (b"{" + b",".join(parts) + b"}").decode()
    except UnicodeDecodeError:
        return ""


def _stored_decoding(text: bytes) -> str | None:
    """Return a JSON object as it is stored, "" for null or no text, None for any other value or one that is too deep."""
    try:
        value = _object_decoder.decode(text or b"null")
    except DECODE_ERRORS:
        return None
    if value and is_too_deep(value):
        return None
    return "" if value is None else msgspec.json.encode(value).decode()
