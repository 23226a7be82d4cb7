"""Lines read into bare structs: for events that are well-formed and yet nothing for Arrow's reader, such as times in RFC 3339.

The structs are made from the event types, so that they accept the same; they are taken apart into columns while the processor
still has them at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from operator import attrgetter
from typing import Any, ClassVar, get_origin, get_type_hints

import msgspec
import numpy as np
import pyarrow as pa

from streams.events.checks import KINDS, WIRE_TYPES, Kind, Wire, to_micros_column
from streams.events.json_fields import ABSENT, ASIDE, make_asides, may_repeat
from streams.events.line_spans import Int64s, Spans, decode_objects
from streams.events.normal_form import normalise_column
from streams.events.schema import MAX_TS_US, Impression, to_micros

CHUNK_BYTES = 65_536
"""Lines that are decoded in one call; few enough that they stay in the processor's cache until they are columns."""


def _bare(kind: Kind) -> type[msgspec.Struct]:
    """Return the event type without what is costly: no dict, unseen by the garbage collector, any JSON left as text."""
    hints = {name: hint for name, hint in get_type_hints(kind, include_extras=True).items() if get_origin(hint) is not ClassVar}
    fields: list[Any] = []
    for info in msgspec.structs.fields(kind):
        if info.name in ASIDE:
            continue
        hint = hints[info.name]
        fields.append((info.name, hint) if info.default is msgspec.NODEFAULT else (info.name, hint, info.default))
    if kind is Impression:
        fields += [(name, msgspec.Raw, ABSENT) for name in ASIDE]
    tag = kind.__struct_config__.tag
    return msgspec.defstruct(
        f"Bare{kind.__name__}", fields, tag_field="type", tag=tag, kw_only=True, gc=False, forbid_unknown_fields=True
    )


_BARE = tuple(map(_bare, KINDS))
_GETTERS = tuple({name: attrgetter(name) for name in kind.__struct_fields__} for kind in _BARE)
_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_BARE[0] | _BARE[1] | _BARE[2])


def read_struct_lines(lines: Spans) -> Iterator[Wire]:
    """Read lines that each begin with { and end with }; one that is in nothing that is yielded could not be read here."""
    found: list[dict[str, list[Any]]] = [{name: [] for name in getters} for getters in _GETTERS]
    rows: list[list[int]] = [[] for _ in KINDS]
    repeating: list[int] = []
    first = 0
    for chunk in _chunks(lines.take(np.arange(len(lines)))):
        events = decode_objects(_decoder, chunk)
        for bare, fields, getters, own in zip(_BARE, found, _GETTERS, rows, strict=True):
            own += [row for row, event in enumerate(events, first) if type(event) is bare]
            of_kind = [event for event in events if type(event) is bare]
            for name, get in getters.items():
                fields[name].extend(map(get, of_kind))
        repeating += [row for row, line in enumerate(chunk, first) if may_repeat(line)]
        first += len(chunk)
    for kind, fields, own in zip(KINDS, found, rows, strict=True):
        if own:
            yield _wire(kind, fields, np.array(own, np.int64), repeating)


def _chunks(texts: list[bytes]) -> Iterator[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _wire(kind: Kind, found: dict[str, list[Any]], rows: Int64s, repeating: list[int]) -> Wire:
    """Return events of one kind; of those in the rows `repeating` only the last of equal fields was looked at."""
    doubtful = np.isin(rows, repeating)
    texts = {name: list(map(bytes, found.pop(name))) for name in ASIDE if name in found}
    ts_us = _micros(found.pop("ts"))
    fields = {name: pa.array(values, WIRE_TYPES.get(name, pa.string())) for name, values in found.items()}
    fields["query_norm"] = normalise_column(fields["query"])
    if texts:
        decoding, extra, strange = make_asides(texts)
        doubtful |= strange
        fields |= {"decoding": decoding, "extra": extra}
    return Wire(kind, fields, ts_us, rows, doubtful)


def _micros(ts: list[float | datetime]) -> Int64s:
    try:
        return to_micros_column(np.array(ts, np.float64))
    except TypeError:
        exact = {row: to_micros(moment) for row, moment in enumerate(ts) if isinstance(moment, datetime)}
    micros = to_micros_column(np.array([0.0 if isinstance(moment, datetime) else moment for moment in ts], np.float64))
    for row, us in exact.items():
        micros[row] = us if 0 <= us < MAX_TS_US else -1
    return micros
