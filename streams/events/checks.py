"""Checks whole columns of event fields at once and derives columns from them; both fast paths end here.

The checks are stricter than the schema, never laxer. A row that fails one needs the strict check: `streams.events.line_decoder`
decides whether it is refused, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.events.column_normal_form import normalise_column, text_bounds
from streams.events.columns import CLICKS, IMPRESSIONS, QUERIES, TEXTS, to_event_days
from streams.events.line_spans import Flags, Int64s
from streams.events.normal_form import normalise
from streams.events.schema import MAX_ID_CHARS, MAX_TS_US, Click, EventSettings, Impression, Query

Kind = type[Query] | type[Impression] | type[Click]
KINDS: tuple[Kind, ...] = (Query, Impression, Click)
SCHEMAS = {Query: QUERIES, Impression: IMPRESSIONS, Click: CLICKS}
WIRE_TYPES = {
    "ts": pa.float64(),
    "items": pa.list_(pa.string()),
    "predicted": pa.list_(pa.float64()),
    "logprob": pa.float64(),
    "position": pa.int64(),
}
"""Arrow types of event fields; all others are texts."""
MAX_POSITION = 2**31 - 1
NO_POSITION = -1
"""Stands for a position that is none, so that its row needs the strict check."""


Fields = Mapping[str, pa.Array]


@dataclass(frozen=True, slots=True, eq=False)
class WireColumns:
    """Events of one kind, one array a field, before they are checked.

    `fields` has every field of the event but ts, `query_norm` (of a null query that of ""), and `extra` of impressions; `ts_us`
    is -1 for a time outside 1970 to 9999, and `position` is NO_POSITION for what is none. `rows` are the numbers of their lines.
    Rows flagged in `needs_strict` may be misread, and any other value of theirs may be null.
    """

    kind: Kind
    fields: Fields
    ts_us: Int64s
    rows: Int64s
    needs_strict: Flags


def fill_nulls(column: pa.Array, value: object) -> pa.Array:
    """Return the column with `value` in place of null; most columns have none."""
    return pc.fill_null(column, value) if column.null_count else column


def to_micros_column(seconds: npt.NDArray[np.float64]) -> Int64s:
    """Return microseconds since the epoch, -1 for NaN and for times outside 1970 to 9999."""
    with np.errstate(over="ignore"):
        rounded = np.rint(seconds * 1_000_000)
    inside = (rounded >= 0) & (rounded < MAX_TS_US)
    return np.where(inside, rounded, -1).astype(np.int64)


def to_positions(numbers: npt.NDArray[np.float64]) -> pa.Array:
    """Return positions (int64) of numbers: 1.0 is 1; NO_POSITION for NaN, a fraction, and what lies outside 0 to MAX_POSITION."""
    inside = (numbers >= 0) & (numbers <= MAX_POSITION)
    whole = np.where(inside, numbers, NO_POSITION).astype(np.int64)
    return pa.array(np.where(whole == numbers, whole, NO_POSITION))


def event_columns(wire: WireColumns, log_columns: Fields, limits: EventSettings, horizon_us: float) -> tuple[pa.Table, Flags]:
    """Return events as a table of `streams.events.columns`, and flags of the rows that need the strict check.

    `log_columns` are the columns that say where each event lies in the log.
    """
    check = {Query: _check_queries, Impression: _check_impressions, Click: _check_clicks}[wire.kind]
    derived, needs_strict = check(wire.fields, limits)
    columns = {**wire.fields, **derived, **log_columns, "ts_us": pa.array(wire.ts_us), "day": to_event_days(wire.ts_us)}
    schema = SCHEMAS[wire.kind]
    table = pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
    needs_strict |= wire.needs_strict | (wire.ts_us < 0) | (wire.ts_us > horizon_us)
    return table, needs_strict | _shared_fields_need_strict(wire.fields, limits)


def _check_queries(fields: Fields, limits: EventSettings) -> tuple[Fields, Flags]:
    source = fill_nulls(fields["source"], "user")
    return {"source": source}, _may_be_invalid_id(source)


def _check_impressions(fields: Fields, limits: EventSettings) -> tuple[Fields, Flags]:
    items = fields["items"]
    starts = items.offsets.to_numpy()
    texts = fill_nulls(items.values, "")
    norms = normalise_column(texts)
    sizes = starts[1:] - starts[:-1]
    needs_strict = _any_in_list(_needs_strict_text(texts, norms, limits), starts) | (sizes < 1) | (sizes > limits.max_items)
    needs_strict |= _has_invalid_number(fields) | _may_be_invalid_id(fields["impression_id"])
    needs_strict |= _may_be_invalid_id(fields["task"], optional=True) | _may_be_invalid_id(fields["release"], optional=True)
    return {"items_norm": _changed_normal_forms(items.offsets, texts, norms)}, needs_strict


def _changed_normal_forms(offsets: pa.Array, texts: pa.StringArray, norms: pa.StringArray) -> pa.Array:
    """Return the lists of normal forms, null where every item is its own normal form."""
    if texts.equals(norms):
        return pa.nulls(len(offsets) - 1, TEXTS)
    changed = _any_in_list(pc.not_equal(texts, norms).to_numpy(zero_copy_only=False), offsets.to_numpy())
    return pa.ListArray.from_arrays(offsets, norms, mask=pa.array(~changed))


def _check_clicks(fields: Fields, limits: EventSettings) -> tuple[Fields, Flags]:
    sizes = _byte_lengths(fields["item"], of_null=1)
    needs_strict = (fields["position"].to_numpy() < 0) | (sizes < 1) | (sizes > limits.max_query_chars)
    return {"item_norm": _normalise_optional(fields["item"])}, needs_strict | _may_be_invalid_id(fields["impression_id"])


def _shared_fields_need_strict(fields: Fields, limits: EventSettings) -> Flags:
    """Flag events whose fields that all kinds share need the strict check."""
    flags = _needs_strict_text(fields["query"], fields["query_norm"], limits)
    flags |= _may_be_invalid_id(fields["event_id"]) | _may_be_invalid_id(fields["session_id"])
    return flags | (_byte_lengths(fields["user_id"]) > MAX_ID_CHARS)


def _may_be_invalid_id(column: pa.Array, optional: bool = False) -> Flags:
    """Flag ids that are empty, or have more bytes than an id may have characters."""
    sizes = _byte_lengths(column, of_null=1 if optional else 0)
    return (sizes < 1) | (sizes > MAX_ID_CHARS)


def _has_invalid_number(fields: Fields) -> Flags:
    """Flag impressions with null or NaN among their numbers."""
    predicted = fields["predicted"]
    flags = ~np.isfinite(fill_nulls(predicted.values, np.nan).to_numpy())
    logprob: npt.NDArray[np.float64] = fill_nulls(fields["logprob"], 0.0).to_numpy()
    return _any_in_list(flags, predicted.offsets.to_numpy()) | ~np.isfinite(logprob)


def _needs_strict_text(texts: pa.StringArray, norms: pa.StringArray, limits: EventSettings) -> Flags:
    """Flag texts that may be too long or have nothing to see."""
    flags: Flags = (_byte_lengths(texts) > limits.max_query_chars) | (_byte_lengths(norms) == 0)
    return flags


def _byte_lengths(texts: pa.StringArray, of_null: int = 0) -> npt.NDArray[np.int32]:
    """Return the number of bytes of each text."""
    bounds = text_bounds(texts)
    sizes: npt.NDArray[np.int32] = bounds[1:] - bounds[:-1]
    if texts.null_count:
        sizes[texts.is_null().to_numpy(zero_copy_only=False)] = of_null
    return sizes


def _normalise_optional(texts: pa.StringArray) -> pa.Array:
    """Return the normal form of each text, null for null."""
    if not texts.null_count:
        return normalise_column(texts)
    return pa.array([None if text is None else normalise(text) for text in texts.to_pylist()], pa.string())


def _any_in_list(flags: Flags, starts: npt.NDArray[np.int32]) -> Flags:
    """Flag the lists with a flagged element; list i has the elements from starts[i] up to starts[i + 1]."""
    if not flags.any():
        return np.zeros(len(starts) - 1, np.bool_)
    before = np.append(0, flags.cumsum())[starts]
    return before[1:] > before[:-1]
