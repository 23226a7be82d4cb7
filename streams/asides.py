"""Fields of an impression that may hold any JSON, kept as text: how it was decoded, and what our own server sends along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from streams.lines import Flags, Int64s

COMPANIONS = ("context", "response")
"""What comes with the impressions of our own server beside the schema's fields, in the order in which `extra` has them."""
ASIDE = ("decoding", *COMPANIONS)
ABSENT = msgspec.Raw(b"")

_Aside: Any = msgspec.defstruct("Aside", [(name, msgspec.Raw, ABSENT) for name in ASIDE], gc=False)
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_Aside)
_object_decoder = msgspec.json.Decoder(dict[str, Any] | None)
REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for text that it refuses."""

Texts = Mapping[str, Sequence[bytes]]
"""The JSON of each of ASIDE, b"" where the field is absent."""


class Asides(NamedTuple):
    """`decoding` as it is stored and `extra` (a JSON object), null where there is none, and which rows hold something else."""

    decoding: pa.Array
    extra: pa.Array
    doubtful: Flags

    def spread(self, rows: Int64s, length: int) -> Asides:
        """Return `length` rows, these at `rows` and nothing elsewhere."""
        if len(rows) == length:
            return self
        place = np.full(length, -1, np.int64)
        place[rows] = np.arange(len(rows))
        doubtful = np.zeros(length, np.bool_)
        doubtful[rows] = self.doubtful
        take = pa.array(place, mask=place < 0)
        return Asides(self.decoding.take(take), self.extra.take(take), doubtful)


def read_asides(lines: Sequence[bytes]) -> Texts:
    """Return these fields of lines that are JSON objects; of one that is not they are absent.

    So is a field that none of the lines has by its plain name, without escapes: its key then counts as one that nobody read.
    """
    text = b"\n".join(lines)
    try:
        asides = _decoder.decode_lines(text)
    except REFUSED:
        asides = [_decode(line) for line in lines]
    found = {name: list(map(attrgetter(name), asides)) for name in ASIDE}
    is_there = {name: raws.count(ABSENT) < len(raws) and b'"%s"' % name.encode() in text for name, raws in found.items()}
    return {name: list(map(bytes, raws)) if is_there[name] else [b""] * len(lines) for name, raws in found.items()}


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


def _decode(line: bytes) -> Any:
    try:
        return _decoder.decode(line)
    except REFUSED:
        return _Aside()


def _extra(texts: Sequence[bytes]) -> str:
    """Return the companions as a JSON object, "" where they are not UTF-8."""
    parts = [b'"%s":%s' % (name.encode(), text) for name, text in zip(COMPANIONS, texts, strict=True) if text]
    try:
        return (b"{" + b",".join(parts) + b"}").decode()
    except UnicodeDecodeError:
        return ""


def _decoding_text(text: bytes) -> str | None:
    """Return an object's JSON as it is stored, "" for null or nothing, None for what is neither."""
    try:
        value = _object_decoder.decode(text or b"null")
    except REFUSED:
        return None
    return "" if value is None else msgspec.json.encode(value).decode()
