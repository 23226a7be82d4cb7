"""Decodes many records into Arrow columns at the speed that a worker needs, with the outcome of `streams.events.line_decoder`.

There are two fast paths: Arrow's JSON reader, then msgspec structs for lines that it cannot read or that fail a check over whole
columns. Lines that are left need the strict check: the line decoder reads them one by one and alone decides what is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from streams.events.checks import KINDS, Kind, event_columns
from streams.events.columns import Columns, to_columns
from streams.events.json_reader import read_json_lines
from streams.events.line_decoder import horizon_us, parse_line
from streams.events.line_spans import Int64s, Lines, split_records
from streams.events.schema import DEFAULT_LIMITS, Click, Decoded, EventSettings, Reason, Reject
from streams.events.struct_reader import read_struct_lines

NO_EVENTS = to_columns(Decoded())


def decode_columns(
    records: Iterable[tuple[int, bytes | None]], limits: EventSettings = DEFAULT_LIMITS, now: float | None = None
) -> Columns:
    """Decode (offset, value) records; each line is accepted or refused as `parse_line` does. Thread-safe."""
    records, decoded = list(records), Decoded()
    lines = split_records([(offset, value) for offset, value in records if value is not None])
    for offset in [offset for offset, value in records if value is None]:
        decoded.add(Reject(Reason.MALFORMED, "record without a value", b"", None, None, offset, 0))
    tables, remaining = _read_in_bulk(lines, limits, horizon_us(limits, now))
    locations = list(zip(lines.offsets[remaining].tolist(), lines.numbers[remaining].tolist(), strict=True))
    for line, (offset, number) in zip(lines.spans.take(remaining), locations, strict=True):
        decoded.add(parse_line(line, limits, offset=offset, number=number, now=now))
    others = to_columns(decoded) if len(remaining) else NO_EVENTS
    queries, impressions, clicks = _merge_tables(tables, others, dict(zip(locations, remaining.tolist(), strict=True)))
    return Columns(queries, impressions, clicks, lines.spans, decoded.rejects)


def _read_in_bulk(lines: Lines, limits: EventSettings, horizon: float) -> tuple[dict[Kind, list[pa.Table]], Int64s]:
    """Return tables of the events that the fast paths read, and the rows of the lines that need the strict check."""
    tables: dict[Kind, list[pa.Table]] = {kind: [] for kind in KINDS}
    remaining = np.ones(len(lines.spans), np.bool_)
    readable = lines.braced & (lines.spans.ends - lines.spans.starts <= limits.max_line_bytes)
    for read in (read_json_lines, read_struct_lines):
        rows = (remaining & readable).nonzero()[0]
        for wire in read(lines.spans.select(rows)) if len(rows) else ():
            wire_rows = rows[wire.rows]
            table, needs_strict = event_columns(wire, _log_columns(wire.kind, lines, wire_rows), limits, horizon)
            if needs_strict.any():
                table, wire_rows = table.filter(pa.array(~needs_strict)), wire_rows[~needs_strict]
            tables[wire.kind].append(table)
            remaining[wire_rows] = False
    return tables, remaining.nonzero()[0]


def _log_columns(kind: Kind, lines: Lines, rows: Int64s) -> dict[str, pa.Array]:
    """Return where each event lies: its row, offset and line number; for clicks also the line itself."""
    columns = {"row": pa.array(rows), "log_offset": pa.array(lines.offsets[rows]), "line": pa.array(lines.numbers[rows])}
    return columns | {"raw": pa.array(lines.spans.take(rows), pa.binary())} if kind is Click else columns


def _merge_tables(
    tables: Mapping[Kind, list[pa.Table]], others: Columns, rows_by_location: Mapping[tuple[int, int], int]
) -> list[pa.Table]:
    """Return one table of each kind: what the fast paths read, and `others`, which the line decoder read.

    `rows_by_location` maps (offset, line number) of the lines in `others` to their rows.
    """
    merged = []
    for found, other in zip(tables.values(), (others.queries, others.impressions, others.clicks), strict=True):
        if len(other):
            locations = zip(other["log_offset"].to_pylist(), other["line"].to_pylist(), strict=True)
            rows = pa.array([rows_by_location[location] for location in locations], pa.int64())
            other = other.set_column(other.column_names.index("row"), "row", rows)
        parts = [*found, other] if len(other) or not found else found
        merged.append(pa.concat_tables(parts) if len(parts) > 1 else parts[0])
    return merged
