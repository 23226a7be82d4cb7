"""Arrow rows as the fields of events: null and NaN are absent, a timestamp is a time in seconds, structs and maps are objects."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from streams.events.schema import EPOCH, MICROSECOND

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 4096
INFINITE = msgspec.Raw(b"1e999")
"""JSON has no infinity: a number that no reader can hold, so that the decoder says which field it is in."""


def read_rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows of a batch as values that JSON can say. Raises OverflowError for a nested time beyond Python's years."""
    import pyarrow as pa

    times = [number for number, field in enumerate(batch.schema) if _is_time(field)]
    maps = any("map<" in str(field.type) for field in batch.schema)  # also within lists and structs
    names = {batch.schema.field(number).name for number in times}
    for number in times:
        batch = batch.set_column(number, batch.schema.field(number).name, _micros(batch.column(number)))
    for number, field in enumerate(batch.schema):
        if pa.types.is_floating(field.type):
            batch = batch.set_column(number, field.name, _without_nan(batch.column(number)))
    for row in batch.to_pylist(maps_as_pydicts="lossy" if maps else None):
        yield {name: _seconds(value) if name in names else _plain(value) for name, value in row.items() if value is not None}


def _is_time(field: pa.Field) -> bool:
    """Whether a column has times: a timestamp, or days in `ts`, which begin at midnight UTC."""
    import pyarrow as pa

    return bool(pa.types.is_timestamp(field.type) or (field.name == "ts" and pa.types.is_date(field.type)))


def _without_nan(numbers: pa.Array) -> pa.Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, numbers.type), numbers)


def _micros(times: pa.Array) -> pa.Array:
    """Cut times to microseconds since the epoch, the resolution of event time. A time without a zone is UTC."""
    import pyarrow as pa

    zone = times.type.tz if pa.types.is_timestamp(times.type) else None
    return times.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64())


def _plain(value: Any) -> Any:
    """Return a cell as JSON can say it."""
    match value:
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return _seconds((aware - EPOCH) // MICROSECOND)
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case float() if math.isinf(value):
            return INFINITE
        case bytes():
            return value.decode("utf-8", "replace")
        case dict():
            return {key: _plain(inner) for key, inner in value.items() if inner is not None}
        case list():
            return [_plain(inner) for inner in value]
    return value


def _seconds(micros: int) -> float | str:
    """Return seconds since the epoch where they hold every microsecond, else RFC 3339 where that can say the year."""
    seconds = micros / 1_000_000
    if round(seconds * 1_000_000) == micros:
        return seconds
    try:
        return (EPOCH + micros * MICROSECOND).isoformat()
    except OverflowError:
        return seconds
