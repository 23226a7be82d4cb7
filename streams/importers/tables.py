"""Rows of a CSV or TSV file, each with its place in the file and its original text, so that a bad row is not lost."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from streams.importers.mapping import FileShape, MappingError
from streams.importers.sources import LogFileError, Source

MAX_LINE_CHARS = 1 << 20


class RowError(ValueError):
    """A row that makes no event; the text says which column is at fault."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row: the number of its first line in the file (from 1), its cells and its text; `fault` says what is wrong with it."""

    number: int
    cells: list[str]
    text: str
    fault: str | None = None


class Table:
    """A table opened for one reading: its column names are known at once, its rows are read when asked for."""

    def __init__(self, source: Source, shape: FileShape) -> None:
        self._source = source
        self._shape = shape
        # A byte order mark is no part of the first column's name.
        self._encoding = "utf-8-sig" if shape.encoding.lower().replace("_", "-") in ("utf-8", "utf8") else shape.encoding
        self._text = source.text(self._encoding)
        self._taken: list[str] = []
        self._cut = False
        self._reader = self._make_reader()
        self.columns = self._read_header() if shape.header else shape.columns

    def rows(self) -> Iterator[Row]:
        """Yield the rows below the header, blank lines left out. Raises LogFileError."""
        with self._source.reporting():
            while True:
                number = self._source.line + 1
                try:
                    cells = next(self._reader, None)
                except csv.Error as error:
                    yield self._row(number, [], str(error))
                    continue
                except UnicodeDecodeError as error:
                    raise LogFileError(f"{self._source.path}: line {number} is not {self._shape.encoding}: {error}") from error
                if cells is None:
                    return
                if cells:
                    yield self._row(number, cells, f"longer than {MAX_LINE_CHARS} characters" if self._cut else None)
                self._taken.clear()

    def original(self, text: str) -> bytes:
        """The bytes that a text of this table was read from."""
        return text.encode(self._encoding.removesuffix("-sig"), "surrogateescape")

    def _make_reader(self) -> Iterator[list[str]]:
        if quote := self._shape.quote:
            return csv.reader(self._lines(), delimiter=self._shape.delimiter, quotechar=quote)
        return csv.reader(self._lines(), delimiter=self._shape.delimiter, quoting=csv.QUOTE_NONE)

    def _read_header(self) -> tuple[str, ...]:
        with self._source.reporting():
            try:
                names = next(self._reader, None)
            except (csv.Error, UnicodeDecodeError) as error:
                raise MappingError(f"{self._source.path}: its header cannot be read: {error}") from error
        self._taken.clear()
        if names is None:
            raise MappingError(f"{self._source.path} is empty: a header was expected (file.header)")
        return tuple(name.strip() for name in names)

    def _row(self, number: int, cells: list[str], fault: str | None) -> Row:
        text = "".join(self._taken).rstrip("\r\n")
        self._taken.clear()
        self._cut = False
        return Row(number, cells, text, fault)

    def _lines(self) -> Iterator[str]:
        """Yield the lines with their ends, each remembered until its row is complete; of an endless one the beginning."""
        while line := self._text.readline(MAX_LINE_CHARS):
            self._source.line += 1
            if len(line) == MAX_LINE_CHARS and not line.endswith(("\n", "\r")):
                self._cut = True
                while (rest := self._text.readline(MAX_LINE_CHARS)) and not rest.endswith(("\n", "\r")):
                    continue
            self._taken.append(line)
            yield line
