"""CSV and TSV logs, rewritten as Parquet for DuckDB: every column is text, and a row that cannot be read keeps its bytes.

DuckDB 2.0 reads CSV itself, but not exactly where rows are broken: with several threads it takes lines within quotes for rows,
with one it drops what follows an open quote without a word. Arrow's reader keeps every row, or hands it over as it stands.
"""

from __future__ import annotations

import csv
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from pyarrow import compute
from pyarrow import csv as arrow_csv
from pyarrow.parquet import ParquetWriter

from streams.events.schema import BOM
from streams.importers.sources import LogFileError, Source

DELIMITERS = "\t,;|"
MAX_ROW_BYTES = 16 << 20
# Each byte is one character of it, so that a row may hold bytes that are no text.
BYTES = "latin-1"

Refuse = Callable[[int, bytes, str], None]
"""Takes a row that cannot be read: its number (the header is 1), its bytes, and what is wrong with it."""


@dataclass(frozen=True)
class Header:
    """How a table is written: the most frequent delimiter of its first line, which names the columns."""

    delimiter: str
    columns: tuple[str, ...]

    @property
    def quotes(self) -> bool:
        """Whether fields may be in quotes: not where tabs part them, as text/tab-separated-values has it."""
        return self.delimiter != "\t"


class _Blocks:
    """A table's bytes as UTF-8, each a character of its own, in blocks that do not end with a carriage return while more follow.

    Arrow drops a line feed that begins a block after a carriage return that ended the last one, within quotes as well; its own
    decoder would cut the blocks anew.
    """

    closed = False

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream
        self._kept = b""

    def read(self, size: int) -> bytes:
        """Return the next bytes, at most `size` (2 or more), and none at the end."""
        more = self._stream.read(max(0, size - len(self._kept)))
        waiting = self._kept + (more if more.isascii() else more.decode(BYTES).encode())
        end = min(size, len(waiting))
        if waiting[end - 1 : end] == b"\r" and (end < len(waiting) or self._stream.peek(1)):
            end -= 1
        block, self._kept = waiting[:end], waiting[end:]
        return block


def convert_table(path: Path, target: Path, refuse: Refuse) -> None:
    """Write the rows of a table into a Parquet file. Raises LogFileError."""
    with Source(path) as source, source.reporting():
        # A decompressor is no RawIOBase, but reads like one.
        stream: io.BufferedReader = io.BufferedReader(cast("Any", source.stream()))
        header = read_header(stream)
        schema = pa.schema([(name, pa.string()) for name in header.columns])
        with ParquetWriter(target, schema, compression="zstd") as writer:
            if not stream.peek(1):
                return
            try:
                for batch in _read_batches(stream, header, refuse):
                    writer.write_batch(batch.rename_columns(schema.names))
            except pa.ArrowInvalid as error:
                said = f"a row is over {MAX_ROW_BYTES:,} bytes; is a quote left open?" if "block size" in str(error) else error
                raise LogFileError(f"{path}: cannot be read as a table: {said}") from error


def read_header(stream: io.BufferedReader) -> Header:
    """Take the first line that is not blank off a stream and return what it says."""
    if stream.peek(len(BOM)).startswith(BOM):
        stream.read(len(BOM))
    line = b"\n"
    while line and not line.strip():
        line = stream.readline(MAX_ROW_BYTES)
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    delimiter = max(DELIMITERS, key=text.count)
    names = text.split(delimiter) if delimiter == "\t" else next(csv.reader([text], delimiter=delimiter))
    return Header(delimiter, _distinct(names))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that are all different, whatever their case, and not empty: DuckDB's columns must be."""
    taken: dict[str, str] = {}
    for place, name in enumerate(names):
        found = base = name.strip() or f"column{place}"
        number = 0
        while found.lower() in taken:
            number += 1
            found = f"{base}_{number}"
        taken[found.lower()] = found
    return tuple(taken.values())


def _read_batches(stream: io.BufferedReader, header: Header, refuse: Refuse) -> Iterator[pa.RecordBatch]:
    refused: list[int] = []

    def put_aside(row: Any) -> str:
        refused.append(row.number)
        refuse(row.number + 1, row.text.encode(BYTES), f"{row.actual_columns} fields instead of {row.expected_columns}")
        return "skip"

    read = 0
    for batch in _open(stream, header, put_aside):
        texts = [_decode(column) for column in batch.columns]
        bad = sorted({place for _, places in texts for place in places})
        for place in bad:
            cells = [column[place].as_py() or "" for column in batch.columns]
            number = _count_rows(read + place + 1, refused)
            refuse(number + 1, header.delimiter.join(cells).encode(BYTES), "not UTF-8")
        read += batch.num_rows
        good = pa.RecordBatch.from_arrays([text for text, _ in texts], names=batch.schema.names)
        yield good.take(pa.array(sorted(set(range(good.num_rows)) - set(bad)))) if bad else good


def _open(stream: io.BufferedReader, header: Header, put_aside: Callable[[Any], str]) -> Any:
    names = [str(place) for place in range(len(header.columns))]
    return arrow_csv.open_csv(
        pa.PythonFile(_Blocks(stream), mode="r"),
        arrow_csv.ReadOptions(use_threads=False, block_size=MAX_ROW_BYTES, column_names=names),
        arrow_csv.ParseOptions(
            delimiter=header.delimiter,
            quote_char='"' if header.quotes else False,
            newlines_in_values=header.quotes,
            invalid_row_handler=put_aside,
        ),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
        ),
    )


def _decode(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return a column of bytes as text, and the places of those that are none."""
    if compute.all(compute.string_is_ascii(column)).as_py() is not False:
        return column, []
    texts, bad = column.to_pylist(), []
    for place, cell in enumerate(texts):
        try:
            texts[place] = None if cell is None else cell.encode(BYTES).decode()
        except UnicodeDecodeError:
            bad.append(place)
    return pa.array(texts, pa.string()), bad


def _count_rows(place: int, refused: Sequence[int]) -> int:
    """Return the number, among all rows, of the row that is number `place` of those that were not refused."""
    number = place
    while (moved := place + bisect_right(refused, number)) != number:
        number = moved
    return number
