"""Parquet logs: rows with the wire format's field names become its lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from streams.importers.arrow_rows import BATCH_ROWS, read_rows
from streams.importers.sources import LogFileError, Source

INDEX = re.compile(r"__index_level_\d+__")
"""The columns in which pandas keeps the row numbers of a table that was filtered."""
NEEDED = ("type", "event_id", "ts", "session_id")


def read_parquet(source: Source) -> Iterator[tuple[int, bytes]]:
    """Return the rows of a Parquet log as lines with their numbers from 1.

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
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise LogFileError(f"{source.path} has the column {', '.join(twice)} twice: rename one of them")
    if (kind := file.schema_arrow.field("ts").type) in (pa.float16(), pa.float32()):
        raise LogFileError(f"{source.path}: ts is {kind}, which holds times to minutes only: write it as double or timestamp")
    return _read_lines(source, file)


def _read_lines(source: Source, file: Any) -> Iterator[tuple[int, bytes]]:
    import pyarrow as pa

    encode = msgspec.json.Encoder().encode
    try:
        names = [name for name in file.schema_arrow.names if not INDEX.fullmatch(name)]
        for batch in file.iter_batches(BATCH_ROWS, columns=names):
            for row in read_rows(batch):
                source.line += 1
                yield source.line, encode(row)
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise LogFileError(f"{source.path}: cannot be read after row {source.line}: {error}") from error
