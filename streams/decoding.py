"""Records straight to columns: what `decode_records` and `columns_of` give, for a worker that has millions of events before it.

Lines go through Arrow's JSON reader; what that cannot read, and what the checks over whole columns doubt, through bare structs;
what is left then, line by line through `streams.decoder`, which alone decides what is refused and why.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from streams.columns import Columns, columns_of
from streams.decoder import decode_record, horizon_us, parse_line
from streams.events import DEFAULT_LIMITS, Decoded, EventSettings
from streams.json_reading import read_json_lines
from streams.lines import Int64s, Lines, split_records
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
    for line, offset, number in zip(
        lines.spans.take(left), lines.offsets[left].tolist(), lines.numbers[left].tolist(), strict=True
    ):
        rest.add(parse_line(line, limits, offset=offset, number=number, now=now))
    return _together(tables, columns_of(rest))


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
            tables[wire.kind].append(_place(table, lines, own))
            left[own] = False
    return tables, np.flatnonzero(left)


def _place(table: pa.Table, lines: Lines, rows: Int64s) -> pa.Table:
    """Return the table with each event's place in the log."""
    where = {
        "raw": pa.array(lines.spans.take(rows), pa.binary()),
        "log_offset": pa.array(lines.offsets[rows]),
        "line": pa.array(lines.numbers[rows]),
    }
    return pa.table([*table.columns, *where.values()], names=[*table.column_names, *where])


def _together(tables: dict[Kind, list[pa.Table]], rest: Columns) -> Columns:
    parts = zip(tables.values(), (rest.queries, rest.impressions, rest.clicks), strict=True)
    whole = [pa.concat_tables([*(table.select(other.column_names) for table in found), other]) for found, other in parts]
    return Columns(whole[0], whole[1], whole[2], rest.rejects)
