"""The first fast path, for nearly all events: lines read by Arrow's JSON reader, which makes no Python object of an event.

The reader is laxer than the schema: it accepts NaN as a number and ignores fields that it was not asked for. So a line is
accepted only when every check passes and when it has no field but those that were read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, pairwise
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json

from streams.events.checks import KINDS, WIRE_TYPES, WireColumns, fill_nulls, to_micros_column, to_positions
from streams.events.column_normal_form import normalise_column
from streams.events.json_fields import PASS_THROUGH, count_keys, make_pass_through, read_pass_through
from streams.events.line_spans import Flags, Int64s, Spans
from streams.events.schema import Click, Impression

CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes of lines that are read in one call."""
MIN_CHUNK_BYTES = 64 * 1024
"""A chunk that cannot be read is halved down to this size; the lines of a chunk this small are left to the next reader."""

_FIELDS = {kind: [name for name in kind.__struct_fields__ if name not in ("ts", *PASS_THROUGH)] for kind in KINDS}
_NAMES = ("type", "ts", *dict.fromkeys(chain(*_FIELDS.values())))
# 1.0 is a whole number too, which Arrow would not read as an integer.
_TYPES = WIRE_TYPES | {"position": pa.float64()}
_SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in _NAMES])
_PARSE = json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore")
_TAGS = pa.array([str(kind.__struct_config__.tag) for kind in KINDS])
_SPACED_COLON = re.compile(rb'"[ \t\r\n]+:')
_QUOTE, _COLON, _SPACE = b'": '


def read_json_lines(lines: Spans) -> Iterator[WireColumns]:
    """Yield the events of lines that each begin with { and end with }, with one line break between any two.

    A line whose row is in none of the results could not be read here.
    """
    chunks = lines.starts // CHUNK_BYTES
    bounds = [0, *((chunks[1:] != chunks[:-1]).nonzero()[0] + 1).tolist(), len(lines)]
    for low, high in pairwise(bounds):
        yield from _read_or_halve(lines, low, high)


def _read_or_halve(lines: Spans, low: int, high: int) -> Iterator[WireColumns]:
    """Read the lines from `low` up to `high`, in halves where one of them cannot be read."""
    start, end = int(lines.starts[low]), int(lines.ends[high - 1])
    if (found := _read_chunk(lines, start, end, high - low)) is not None:
        yield from _split_by_kind(found, lines, low, high)
    elif end - start > MIN_CHUNK_BYTES and high - low > 1:
        middle = (low + high) // 2
        yield from _read_or_halve(lines, low, middle)
        yield from _read_or_halve(lines, middle, high)


def _read_chunk(lines: Spans, start: int, end: int, count: int) -> pa.RecordBatch | None:
    """Return one row for each line, or None when a line cannot be read or has several values.

    The reader accepts two values in a line. Each line begins with { and ends with }, so no value spans lines and each line has
    at least one value; as many values as lines means one value each. For the same reason no block begins with a null, at which
    the reader would crash.
    """
    options = json.ReadOptions(use_threads=False, block_size=end - start + 1)
    source = pa.BufferReader(pa.py_buffer(lines.text).slice(start, end - start))
    try:
        if not lines.is_ascii:
            lines.text[start:end].decode()
        table = json.read_json(source, read_options=options, parse_options=_PARSE)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None
    return table.combine_chunks().to_batches()[0] if len(table) == count else None


def _split_by_kind(found: pa.RecordBatch, lines: Spans, low: int, high: int) -> Iterator[WireColumns]:
    """Yield the events that were read from the lines from `low` up to `high`, kind by kind."""
    keys, needs_strict = _count_line_keys(lines, low, high)
    code = fill_nulls(pc.index_in(found["type"], value_set=_TAGS), -1).to_numpy()
    ts_us = to_micros_column(fill_nulls(found["ts"], np.nan).to_numpy())
    found = found.append_column("query_norm", normalise_column(fill_nulls(found["query"], "")))
    for number, kind in enumerate(KINDS):
        if not len(rows := (code == number).nonzero()[0]):
            continue
        chosen = found.select([*_FIELDS[kind], "query_norm"]).take(pa.array(rows))
        fields = dict(zip(chosen.schema.names, chosen.columns, strict=True))
        unread = keys[rows] - 2 - len(_FIELDS[kind])  # type and ts are there: without either it is not an event
        for column in filter(attrgetter("null_count"), chosen.columns):
            unread += column.is_null().to_numpy(zero_copy_only=False)
        own_needs_strict = needs_strict[rows]
        if kind is Impression:
            pass_through, flags = _read_pass_through(lines, rows + low, unread)
            fields, own_needs_strict = fields | pass_through, own_needs_strict | flags
        if kind is Click:
            fields["position"] = to_positions(fill_nulls(fields["position"], np.nan).to_numpy())
        yield WireColumns(kind, fields, ts_us[rows], rows + low, own_needs_strict | (unread != 0))


def _count_line_keys(lines: Spans, low: int, high: int) -> tuple[Int64s, Flags]:
    """Return how often `":` occurs in each line, and flags of the lines that may have white space before a colon.

    A line with as many of them as fields were read from it has no other field, no field twice and none that is null.
    """
    start = int(lines.starts[low])
    ends = lines.ends[low:high] - start
    data = np.frombuffer(lines.text, np.uint8, int(ends[-1]), start)
    colons = (data == _COLON).nonzero()[0]
    before = data[colons - 1]  # no line begins with a colon
    keys = colons[before == _QUOTE].searchsorted(ends)
    keys[1:] -= keys[:-1].copy()
    unusual = np.zeros(high - low, np.bool_)
    if len(spaced := colons[before <= _SPACE]):
        suspects = np.unique(ends.searchsorted(spaced, side="right"))
        unusual[suspects] = [_SPACED_COLON.search(line) is not None for line in lines.take(suspects + low)]
    return keys, unusual


def _read_pass_through(lines: Spans, rows: Int64s, unread: Int64s) -> tuple[dict[str, pa.Array], Flags]:
    """Return the pass-through fields of impressions, and subtract their keys from `unread`."""
    some = (unread > 0).nonzero()[0]
    texts, which = read_pass_through(lines, rows[some])
    unread[some] -= count_keys(texts)[which]
    places = np.full(len(unread), -1)
    places[some] = which
    decoding, extra, needs_strict = make_pass_through(texts).take_rows(places)
    return {"decoding": decoding, "extra": extra}, needs_strict
