"""Records straight to columns: what `decode_records` and `columns_of` give, for a worker that has millions of events before it.

Lines go through Arrow's JSON reader; what that cannot read, and what the checks over whole columns doubt, through bare structs;
what is left then, line by line through `streams.decoder`, which alone decides what is refused and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from streams.columns import Columns, columns_of
from streams.decoder import decode_record, horizon_us, parse_line
from streams.events import DEFAULT_LIMITS, Click, Decoded, EventSettings
from streams.json_reading import read_json_lines
from streams.lines import Int64s, Lines, Spans, split_records
from streams.struct_reading import read_struct_lines
from streams.wire_columns import KINDS, Kind, event_columns


def decode_columns(
    records: Iterable[tuple[int, bytes | None]], limits: EventSettings = DEFAULT_LIMITS, now: float | None = None
) -> Columns:
    """Decode (offset, value) records; equal to `columns_of(decode_records(...))` but for the order of rows. Thread-safe."""
    rest, plain = Decoded(), []
    for offset, value in records:
        if value is None:
            for reject in decode_record(value, offset=offset, limits=limits, now=now).found():
                rest.add(reject)
        else:
            plain.append((offset, value))
    lines = split_records(plain)
    tables, left = _read_in_bulk(lines, limits, horizon_us(limits, now))
    places = list(zip(lines.offsets[left].tolist(), lines.numbers[left].tolist(), strict=True))
    for line, (offset, number) in zip(lines.spans.take(left), places, strict=True):
        rest.add(parse_line(line, limits, offset=offset, number=number, now=now))
    return _together(tables, columns_of(rest), lines.spans, dict(zip(places, left.tolist(), strict=True)))


def _read_in_bulk(lines: Lines, limits: EventSettings, horizon: float) -> tuple[dict[Kind, list[pa.Table]], Int64s]:
    """Return what the bulk readers read, and the rows of the lines that are left."""
    tables: dict[Kind, list[pa.Table]] = {kind: [] for kind in KINDS}
    left = np.ones(len(lines.spans), np.bool_)
    readable = lines.braced & (lines.spans.ends - lines.spans.starts <= limits.max_line_bytes)
    for read in (read_json_lines, read_struct_lines):
        rows = np.flatnonzero(left & readable)
        for wire in read(lines.spans.select(rows)) if len(rows) else ():
            table, doubtful = event_columns(wire, limits, horizon)
            own = rows[wire.rows]
            if doubtful.any():
                table, own = table.filter(pa.array(~doubtful)), own[~doubtful]
            tables[wire.kind].append(_place(wire.kind, table, lines, own))
            left[own] = False
    return tables, np.flatnonzero(left)


def _place(kind: Kind, table: pa.Table, lines: Lines, rows: Int64s) -> pa.Table:
    """Return the table with each event's row and its place in the log."""
    where = {"row": pa.array(rows), "log_offset": pa.array(lines.offsets[rows]), "line": pa.array(lines.numbers[rows])}
    if kind is Click:
        where["raw"] = pa.array(lines.spans.take(rows), pa.binary())
    return pa.table([*table.columns, *where.values()], names=[*table.column_names, *where])


def _together(tables: dict[Kind, list[pa.Table]], rest: Columns, texts: Spans, row_at: Mapping[tuple[int, int], int]) -> Columns:
    """Return what the bulk readers read and what the line decoder did; `row_at` has the rows of its lines by their places."""
    whole = []
    for found, other in zip(tables.values(), (rest.queries, rest.impressions, rest.clicks), strict=True):
        if len(other):
            places = zip(other["log_offset"].to_pylist(), other["line"].to_pylist(), strict=True)
            rows = pa.array([row_at[place] for place in places], pa.int64())
            other = other.set_column(other.column_names.index("row"), "row", rows)
        read = [table.select(other.column_names) for table in found]
        whole.append(pa.concat_tables([*read, other]) if len(other) or not read else pa.concat_tables(read))
    return Columns(whole[0], whole[1], whole[2], texts, rest.rejects)
