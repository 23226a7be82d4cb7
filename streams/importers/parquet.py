"""Parquet logs: rows with the wire format's field names become its lines."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from streams.events.schema import EPOCH, MICROSECOND
from streams.importers.sources import LogFileError, Source

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 4096
NEEDED = ("type", "event_id", "ts", "session_id")


def read_parquet(source: Source) -> Iterator[bytes]:
    """Return the rows of a Parquet log as lines: null is absent, a timestamp is a `ts`, structs and maps are objects.

    Raises LogFileError, at once where columns are missing that every event has.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(source.raw, memory_map=False)
    except (pa.ArrowException, OSError) as error:
        raise LogFileError(f"{source.path}: cannot be read as Parquet: {error}") from error
    names = file.schema_arrow.names
    if missing := [name for name in NEEDED if name not in names]:
        raise LogFileError(f"{source.path} has no column {', '.join(missing)}; its columns are {', '.join(names)}")
    return _read_rows(source, file)


def _read_rows(source: Source, file: Any) -> Iterator[bytes]:
    import pyarrow as pa

    encode = msgspec.json.Encoder().encode
    maps = [field.name for field in file.schema_arrow if pa.types.is_map(field.type)]
    try:
        for batch in file.iter_batches(BATCH_ROWS):
            for row in _plain_times(batch).to_pylist(maps_as_pydicts="lossy" if maps else None):
                source.line += 1
                yield encode({name: _plain(value) for name, value in row.items() if value is not None})
    except (pa.ArrowException, OSError) as error:
        raise LogFileError(f"{source.path}: cannot be read after row {source.line}: {error}") from error


def _plain_times(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Cut timestamps to microseconds, the resolution of event time: Python's datetime has no finer one either."""
    import pyarrow as pa

    for number, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":
            finer = batch.column(number).cast(pa.timestamp("us", field.type.tz), safe=False)
            batch = batch.set_column(number, field.with_type(finer.type), finer)
    return batch


def _plain(value: Any) -> Any:
    """Return a cell as JSON can say it."""
    match value:
        case datetime():
            return _seconds(value)
        case Decimal():
            return float(value)
        case bytes():
            return value.decode("utf-8", "replace")
        case dict():
            return {key: _plain(inner) for key, inner in value.items() if inner is not None}
        case list():
            return [_plain(inner) for inner in value]
    return value


def _seconds(moment: datetime) -> float | str:
    """Return seconds since the epoch where they hold every microsecond, else RFC 3339. A time without a zone is UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    micros = (aware - EPOCH) // MICROSECOND
    seconds = micros / 1_000_000
    return seconds if round(seconds * 1_000_000) == micros else aware.isoformat()
