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

from streams.columns import event_days
from streams.events import MAX_ID_CHARS, MAX_TS_US, Click, EventSettings, Impression, Query, normalise
from streams.lines import Flags, Int64s
from streams.normalising import normalise_column

Kind = type[Query] | type[Impression] | type[Click]
KINDS: tuple[Kind, ...] = (Query, Impression, Click)
WIRE_TYPES = {
    "ts": pa.float64(),
    "items": pa.list_(pa.string()),
    "predicted": pa.list_(pa.float64()),
    "logprob": pa.float64(),
    "position": pa.int64(),
}
"""Arrow types of wire fields; others are texts."""
MAX_POSITION = 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """Events of one kind as they came.

    `fields` has an array for each wire field, and `extra` of impressions; `ts_us` is -1 for a time outside 1970 to 9999.
    `rows` says which of the lines each one is. Of a row in `doubtful` nothing is certain, and any value may be null.
    """

    kind: Kind
    fields: Mapping[str, pa.Array]
    ts_us: Int64s
    rows: Int64s
    doubtful: Flags


def fill_nulls(column: pa.Array, value: object) -> pa.Array:
    """Return a column with `value` for null; most have none."""
    return pc.fill_null(column, value) if column.null_count else column


def to_micros_column(seconds: npt.NDArray[np.float64]) -> Int64s:
    """Return microseconds since the epoch, -1 for what is outside 1970 to 9999 or no number."""
    rounded = np.rint(seconds * 1_000_000)
    inside = (rounded >= 0) & (rounded < MAX_TS_US)
    return np.where(inside, rounded, -1).astype(np.int64)


def event_columns(wire: Wire, limits: EventSettings, horizon_us: float) -> tuple[pa.Table, Flags]:
    """Return events as in `streams.columns`, without their places in the log, and which of the rows are doubtful."""
    make = {Query: _queries, Impression: _impressions, Click: _clicks}[wire.kind]
    columns, doubtful = make(wire, limits)
    return pa.table(columns), doubtful | wire.doubtful | (wire.ts_us < 0) | (wire.ts_us > horizon_us)


def _queries(wire: Wire, limits: EventSettings) -> tuple[dict[str, pa.Array], Flags]:
    shared, doubtful = _shared(wire, limits)
    source = fill_nulls(wire.fields["source"], "user")
    return shared | _chosen(wire, "session_id", "user_id") | {"source": source}, doubtful | _is_no_id(source)


def _impressions(wire: Wire, limits: EventSettings) -> tuple[dict[str, pa.Array], Flags]:
    shared, doubtful = _shared(wire, limits)
    items = wire.fields["items"]
    starts = items.offsets.to_numpy()
    texts, norms, strange = _texts(items.values, limits.max_query_chars)
    changed = _any_of(pc.not_equal(texts, norms).to_numpy(zero_copy_only=False), starts)
    sizes = np.diff(starts)
    doubtful |= _any_of(strange, starts) | (sizes < 1) | (sizes > limits.max_items) | _lacks_a_number(wire.fields)
    doubtful |= _is_no_id(wire.fields["impression_id"])
    doubtful |= _is_no_id(wire.fields["task"], optional=True) | _is_no_id(wire.fields["release"], optional=True)
    kept = _chosen(wire, "impression_id", "session_id", "user_id", "task", "items")
    kept["items_norm"] = pa.ListArray.from_arrays(items.offsets, norms, mask=pa.array(~changed))
    return shared | kept | _chosen(wire, "release", "predicted", "logprob", "decoding", "extra"), doubtful


def _clicks(wire: Wire, limits: EventSettings) -> tuple[dict[str, pa.Array], Flags]:
    shared, doubtful = _shared(wire, limits)
    position = fill_nulls(wire.fields["position"], -1).to_numpy()
    item = wire.fields["item"]
    sizes = fill_nulls(pc.binary_length(item), 1).to_numpy()
    doubtful |= (position < 0) | (position > MAX_POSITION) | (sizes < 1) | (sizes > limits.max_query_chars)
    columns = {name: shared[name] for name in ("ts_us", "day", "event_id")} | _chosen(wire, "impression_id", "position")
    return columns | {"item_norm": _norms(item)}, doubtful | _is_no_id(wire.fields["impression_id"])


def _shared(wire: Wire, limits: EventSettings) -> tuple[dict[str, pa.Array], Flags]:
    fields = wire.fields
    query, query_norm, strange = _texts(fields["query"], limits.max_query_chars)
    doubtful = strange | _is_no_id(fields["event_id"]) | _is_no_id(fields["session_id"])
    doubtful |= fill_nulls(pc.binary_length(fields["user_id"]), 0).to_numpy() > MAX_ID_CHARS
    ts_us = pa.array(wire.ts_us)
    columns = {"ts_us": ts_us, "day": event_days(ts_us), "event_id": fields["event_id"], "query": query, "query_norm": query_norm}
    return columns, doubtful


def _chosen(wire: Wire, *names: str) -> dict[str, pa.Array]:
    return {name: wire.fields[name] for name in names}


def _is_no_id(column: pa.Array, optional: bool = False) -> Flags:
    """Flag what is empty, or longer in bytes than an id may be in characters."""
    sizes: Int64s = fill_nulls(pc.binary_length(column), 1 if optional else 0).to_numpy()
    return (sizes < 1) | (sizes > MAX_ID_CHARS)


def _lacks_a_number(fields: Mapping[str, pa.Array]) -> Flags:
    """Flag impressions with null or NaN where a number must be."""
    predicted = fields["predicted"]
    strange = ~np.isfinite(fill_nulls(predicted.values, np.nan).to_numpy())
    logprob: npt.NDArray[np.float64] = fill_nulls(fields["logprob"], 0.0).to_numpy()
    return _any_of(strange, predicted.offsets.to_numpy()) | ~np.isfinite(logprob)


def _texts(texts: pa.StringArray, limit: int) -> tuple[pa.Array, pa.Array, Flags]:
    """Return texts, their normal forms, and which may be too long or only white space; null is taken for empty."""
    column = fill_nulls(texts, "")
    norms = normalise_column(column)
    lengths, left = pc.binary_length(column).to_numpy(), pc.binary_length(norms).to_numpy()
    return column, norms, (lengths > limit) | (left == 0)


def _norms(texts: pa.StringArray) -> pa.Array:
    """Return the normal form of each text, null where there is none."""
    if not texts.null_count:
        return normalise_column(texts)
    return pa.array([None if text is None else normalise(text) for text in texts.to_pylist()], pa.string())


def _any_of(flags: Flags, starts: npt.NDArray[np.int32]) -> Flags:
    """Say of each list whether one of its elements is flagged."""
    before = np.concatenate([[0], np.cumsum(flags)])[starts]
    return np.diff(before) > 0
