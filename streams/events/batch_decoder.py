"""Records straight to columns: what `decode_records` and `columns_of` give, for a worker that has millions of events before it.

Lines go through Arrow's JSON reader; what that cannot read, and what the checks over whole columns doubt, through bare structs;
what is left then, line by line through `streams.events.line_decoder`, which alone decides what is refused and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from streams.events.checks import KINDS, Kind, event_columns
from streams.events.columns import Columns, columns_of
from streams.events.json_reader import read_json_lines
from streams.events.line_decoder import decode_record, horizon_us, parse_line
from streams.events.line_spans import Int64s, Lines, split_records
from streams.events.schema import DEFAULT_LIMITS, Click, Decoded, EventSettings
from streams.events.struct_reader import read_struct_lines

NO_EVENTS = columns_of(Decoded())


def decode_columns(
    records: Iterable[tuple[int, bytes | None]], limits: EventSettings = DEFAULT_LIMITS, now: float | None = None
) -> Columns:
    """Decode (offset, value) records; equal to `columns_of(decode_records(...))` but for the order of rows. Thread-safe."""
    records, rest = list(records), Decoded()
    lines = split_records([(offset, value) for offset, value in records if value is not None])
    for offset in [offset for offset, value in records if value is None]:
        for reject in decode_record(None, offset=offset, limits=limits, now=now).found():
            rest.add(reject)
    tables, left = _read_in_bulk(lines, limits, horizon_us(limits, now))
    places = list(zip(lines.offsets[left].tolist(), lines.numbers[left].tolist(), strict=True))
    for line, (offset, number) in zip(lines.spans.take(left), places, strict=True):
        rest.add(parse_line(line, limits, offset=offset, number=number, now=now))
    others = columns_of(rest) if len(left) else NO_EVENTS
    queries, impressions, clicks = _together(tables, others, dict(zip(places, left.tolist(), strict=True)))
    return Columns(queries, impressions, clicks, lines.spans, rest.rejects)


def _read_in_bulk(lines: Lines, limits: EventSettings, horizon: float) -> tuple[dict[Kind, list[pa.Table]], Int64s]:
    """Return what the bulk readers read, and the rows of the lines that are left."""
    tables: dict[Kind, list[pa.Table]] = {kind: [] for kind in KINDS}
    left = np.ones(len(lines.spans), np.bool_)
    readable = lines.braced & (lines.spans.ends - lines.spans.starts <= limits.max_line_bytes)
    for read in (read_json_lines, read_struct_lines):
        rows = (left & readable).nonzero()[0]
        for wire in read(lines.spans.select(rows)) if len(rows) else ():
            own = rows[wire.rows]
            table, doubtful = event_columns(wire, _place(wire.kind, lines, own), limits, horizon)
            if doubtful.any():
                table, own = table.filter(pa.array(~doubtful)), own[~doubtful]
            tables[wire.kind].append(table)
            left[own] = False
    return tables, left.nonzero()[0]


def _place(kind: Kind, lines: Lines, rows: Int64s) -> dict[str, pa.Array]:
    """Return columns of each event's row and its place in the log, and of its line where its kind keeps that."""
    place = {"row": pa.array(rows), "log_offset": pa.array(lines.offsets[rows]), "line": pa.array(lines.numbers[rows])}
    return place | {"raw": pa.array(lines.spans.take(rows), pa.binary())} if kind is Click else place


def _together(tables: Mapping[Kind, list[pa.Table]], rest: Columns, row_at: Mapping[tuple[int, int], int]) -> list[pa.Table]:
    """Return what the bulk readers read and what the line decoder did; `row_at` has the rows of its lines by their places."""
    whole = []
    for found, other in zip(tables.values(), (rest.queries, rest.impressions, rest.clicks), strict=True):
        if len(other):
            places = zip(other["log_offset"].to_pylist(), other["line"].to_pylist(), strict=True)
            rows = pa.array([row_at[place] for place in places], pa.int64())
            other = other.set_column(other.column_names.index("row"), "row", rows)
        parts = [*found, other] if len(other) or not found else found
        whole.append(pa.concat_tables(parts) if len(parts) > 1 else parts[0])
    return whole
