"""Wire fields to event columns: the checks that types cannot say, over whole columns, and what is derived from the fields.

Both bulk readers end here. A row that fails a check is only doubtful: the line decoder decides what is refused, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.events.columns import CLICKS, IMPRESSIONS, QUERIES, TEXTS, event_days
from streams.events.line_spans import Flags, Int64s
from streams.events.normal_form import normalise_column, text_bounds
from streams.events.schema import MAX_ID_CHARS, MAX_TS_US, Click, EventSettings, Impression, Query, normalise

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
"""Arrow types of wire fields; others are texts."""
MAX_POSITION = 2**31 - 1


Fields = Mapping[str, pa.Array]


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """Events of one kind as they came.

    `fields` has an array for each wire field but ts, `query_norm` (of null that of ""), and `extra` of impressions; `ts_us` is
    -1 for a time outside 1970 to 9999. `rows` says which of the lines each one is. Of a row in `doubtful` nothing is certain,
    and any value may be null.
    """

    kind: Kind
    fields: Fields
    ts_us: Int64s
    rows: Int64s
    doubtful: Flags


def fill_nulls(column: pa.Array, value: object) -> pa.Array:
    """Return a column with `value` for null; most have none."""
    return pc.fill_null(column, value) if column.null_count else column


def to_micros_column(seconds: npt.NDArray[np.float64]) -> Int64s:
    """Return microseconds since the epoch, -1 for what is outside 1970 to 9999 or no number."""
    with np.errstate(over="ignore"):
        rounded = np.rint(seconds * 1_000_000)
    inside = (rounded >= 0) & (rounded < MAX_TS_US)
    return np.where(inside, rounded, -1).astype(np.int64)


def event_columns(wire: Wire, place: Fields, limits: EventSettings, horizon_us: float) -> tuple[pa.Table, Flags]:
    """Return events as in `streams.events.columns`, and which rows are doubtful; `place` says where they are in the log."""
    make = {Query: _queries, Impression: _impressions, Click: _clicks}[wire.kind]
    made, doubtful = make(wire.fields, limits)
    columns = {**wire.fields, **made, **place, "ts_us": pa.array(wire.ts_us), "day": event_days(wire.ts_us)}
    schema = SCHEMAS[wire.kind]
    table = pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
    doubtful |= wire.doubtful | (wire.ts_us < 0) | (wire.ts_us > horizon_us)
    return table, doubtful | _has_strange_shared(wire.fields, limits)


def _queries(fields: Fields, limits: EventSettings) -> tuple[Fields, Flags]:
    source = fill_nulls(fields["source"], "user")
    return {"source": source}, _is_no_id(source)


def _impressions(fields: Fields, limits: EventSettings) -> tuple[Fields, Flags]:
    items = fields["items"]
    starts = items.offsets.to_numpy()
    texts = fill_nulls(items.values, "")
    norms = normalise_column(texts)
    sizes = starts[1:] - starts[:-1]
    doubtful = _any_of(_is_strange(texts, norms, limits), starts) | (sizes < 1) | (sizes > limits.max_items)
    doubtful |= _lacks_a_number(fields) | _is_no_id(fields["impression_id"])
    doubtful |= _is_no_id(fields["task"], optional=True) | _is_no_id(fields["release"], optional=True)
    return {"items_norm": _changed(items.offsets, texts, norms)}, doubtful


def _changed(offsets: pa.Array, texts: pa.StringArray, norms: pa.StringArray) -> pa.Array:
    """Return the lists of normal forms, null where each is the text itself."""
    if texts.equals(norms):
        return pa.nulls(len(offsets) - 1, TEXTS)
    changed = _any_of(pc.not_equal(texts, norms).to_numpy(zero_copy_only=False), offsets.to_numpy())
    return pa.ListArray.from_arrays(offsets, norms, mask=pa.array(~changed))


def _clicks(fields: Fields, limits: EventSettings) -> tuple[Fields, Flags]:
    position = fill_nulls(fields["position"], -1).to_numpy()
    sizes = _sizes(fields["item"], of_null=1)
    doubtful = (position < 0) | (position > MAX_POSITION) | (sizes < 1) | (sizes > limits.max_query_chars)
    return {"item_norm": _norms(fields["item"])}, doubtful | _is_no_id(fields["impression_id"])


def _has_strange_shared(fields: Fields, limits: EventSettings) -> Flags:
    """Flag events with a strange value in a field that all kinds have."""
    strange = _is_strange(fields["query"], fields["query_norm"], limits)
    strange |= _is_no_id(fields["event_id"]) | _is_no_id(fields["session_id"])
    return strange | (_sizes(fields["user_id"]) > MAX_ID_CHARS)


def _is_no_id(column: pa.Array, optional: bool = False) -> Flags:
    """Flag what is empty, or longer in bytes than an id may be in characters."""
    sizes = _sizes(column, of_null=1 if optional else 0)
    return (sizes < 1) | (sizes > MAX_ID_CHARS)


def _lacks_a_number(fields: Fields) -> Flags:
    """Flag impressions with null or NaN where a number must be."""
    predicted = fields["predicted"]
    strange = ~np.isfinite(fill_nulls(predicted.values, np.nan).to_numpy())
    logprob: npt.NDArray[np.float64] = fill_nulls(fields["logprob"], 0.0).to_numpy()
    return _any_of(strange, predicted.offsets.to_numpy()) | ~np.isfinite(logprob)


def _is_strange(texts: pa.StringArray, norms: pa.StringArray, limits: EventSettings) -> Flags:
    """Flag texts that may be too long or only white space."""
    strange: Flags = (_sizes(texts) > limits.max_query_chars) | (_sizes(norms) == 0)
    return strange


def _sizes(texts: pa.StringArray, of_null: int = 0) -> npt.NDArray[np.int32]:
    """Return how many bytes each text has."""
    bounds = text_bounds(texts)
    sizes: npt.NDArray[np.int32] = bounds[1:] - bounds[:-1]
    if texts.null_count:
        sizes[texts.is_null().to_numpy(zero_copy_only=False)] = of_null
    return sizes


def _norms(texts: pa.StringArray) -> pa.Array:
    """Return the normal form of each text, null where there is none."""
    if not texts.null_count:
        return normalise_column(texts)
    return pa.array([None if text is None else normalise(text) for text in texts.to_pylist()], pa.string())


def _any_of(flags: Flags, starts: npt.NDArray[np.int32]) -> Flags:
    """Say of each list whether one of its elements is flagged."""
    if not flags.any():
        return np.zeros(len(starts) - 1, np.bool_)
    before = np.append(0, flags.cumsum())[starts]
    return before[1:] > before[:-1]
