"""Lines read by Arrow's JSON reader: the way of nearly all events into columns, without a Python object for any of them.

The reader is laxer than the schema: it takes NaN for a number and passes over fields that it was not asked for. So a line is
believed only where every check holds, and where the fields that were read are all that it has.
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

from streams.events.checks import KINDS, WIRE_TYPES, Wire, fill_nulls, to_micros_column
from streams.events.json_fields import ASIDE, count_keys, make_asides, read_asides
from streams.events.line_spans import Flags, Int64s, Spans
from streams.events.normal_form import normalise_column
from streams.events.schema import Impression

PIECE_BYTES = 4 * 1024 * 1024
"""Lines that are read in one call."""
LEAST_BYTES = 64 * 1024
"""A piece that cannot be read is halved down to this size; the lines of one so small are given up."""

_FIELDS = {kind: [name for name in kind.__struct_fields__ if name not in ("ts", *ASIDE)] for kind in KINDS}
_NAMES = ("type", "ts", *dict.fromkeys(chain(*_FIELDS.values())))
_SCHEMA = pa.schema([(name, WIRE_TYPES.get(name, pa.string())) for name in _NAMES])
_PARSE = json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore")
_TAGS = pa.array([str(kind.__struct_config__.tag) for kind in KINDS])
_COLON_APART = re.compile(rb'"[ \t\r\n]+:')
_QUOTE, _COLON, _SPACE = b'": '


def read_json_lines(lines: Spans) -> Iterator[Wire]:
    """Read lines that each begin with { and end with }, with one line break between any two.

    A line that is in nothing that is yielded could not be read here.
    """
    pieces = lines.starts // PIECE_BYTES
    bounds = [0, *((pieces[1:] != pieces[:-1]).nonzero()[0] + 1).tolist(), len(lines)]
    for low, high in pairwise(bounds):
        yield from _read_halving(lines, low, high)


def _read_halving(lines: Spans, low: int, high: int) -> Iterator[Wire]:
    """Read the lines from `low` up to `high`, in halves where something in them cannot be read."""
    start, end = int(lines.starts[low]), int(lines.ends[high - 1])
    if (found := _read(lines, start, end, high - low)) is not None:
        yield from _take_apart(found, lines, low, high)
    elif end - start > LEAST_BYTES and high - low > 1:
        middle = (low + high) // 2
        yield from _read_halving(lines, low, middle)
        yield from _read_halving(lines, middle, high)


def _read(lines: Spans, start: int, end: int, count: int) -> pa.RecordBatch | None:
    """Return a row a line, or None where they need a look one by one.

    The reader lets two values share a line. Each line begins with { and ends with }, so none goes on in the next one, and each
    holds one value or more; when there are as many values as lines, each holds one. Nor does it meet a null as the first value of
    a block, at which it would crash.
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


def _take_apart(found: pa.RecordBatch, lines: Spans, low: int, high: int) -> Iterator[Wire]:
    """Yield the events of each kind that were read of the lines from `low` up to `high`."""
    keys, doubtful = _count_keys(lines, low, high)
    code = fill_nulls(pc.index_in(found["type"], value_set=_TAGS), -1).to_numpy()
    ts_us = to_micros_column(fill_nulls(found["ts"], np.nan).to_numpy())
    found = found.append_column("query_norm", normalise_column(fill_nulls(found["query"], "")))
    for number, kind in enumerate(KINDS):
        if not len(rows := (code == number).nonzero()[0]):
            continue
        chosen = found.select([*_FIELDS[kind], "query_norm"]).take(pa.array(rows))
        fields = dict(zip(chosen.schema.names, chosen.columns, strict=True))
        unread = keys[rows] - 2 - len(_FIELDS[kind])  # type and ts are there: without either it is no event
        for column in filter(attrgetter("null_count"), chosen.columns):
            unread += column.is_null().to_numpy(zero_copy_only=False)
        doubts = doubtful[rows]
        if kind is Impression:
            aside, strange = _read_aside(lines, rows + low, unread)
            fields, doubts = fields | aside, doubts | strange
        yield Wire(kind, fields, ts_us[rows], rows + low, doubts | (unread != 0))


def _count_keys(lines: Spans, low: int, high: int) -> tuple[Int64s, Flags]:
    """Return how often `":` stands in each line, and which lines may have a key that is written otherwise.

    A line with no more of them than fields were read of it has no other field, none twice and none that is null.
    """
    start = int(lines.starts[low])
    ends = lines.ends[low:high] - start
    data = np.frombuffer(lines.text, np.uint8, int(ends[-1]), start)
    colons = (data == _COLON).nonzero()[0]
    before = data[colons - 1]  # no line begins with a colon
    keys = colons[before == _QUOTE].searchsorted(ends)
    keys[1:] -= keys[:-1].copy()
    apart = np.zeros(high - low, np.bool_)
    if len(spaced := colons[before <= _SPACE]):
        suspects = np.unique(ends.searchsorted(spaced, side="right"))
        apart[suspects] = [_COLON_APART.search(line) is not None for line in lines.take(suspects + low)]
    return keys, apart


def _read_aside(lines: Spans, rows: Int64s, unread: Int64s) -> tuple[dict[str, pa.Array], Flags]:
    """Return the fields of impressions that are kept as text, and take their keys off `unread`."""
    some = (unread > 0).nonzero()[0]
    texts, which = read_asides(lines, rows[some])
    unread[some] -= count_keys(texts)[which]
    places = np.full(len(unread), -1)
    places[some] = which
    decoding, extra, doubtful = make_asides(texts).spread(places)
    return {"decoding": decoding, "extra": extra}, doubtful
