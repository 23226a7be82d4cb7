"""What a mapping reads from one row: texts, whole numbers, times and conditions, each bound to its column once a file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

from streams.events.schema import EPOCH, MICROSECOND
from streams.importers.mapping import Column, Condition, MappingError, Position, Times, Value
from streams.importers.tables import Row, RowError

Text = Callable[[Row], str | None]
Needed = Callable[[Row], str]
Test = Callable[[Row], bool]
Moment = Callable[[Row], float]


class Cells:
    """The columns of one file, and what means that a cell is empty."""

    def __init__(self, path: Path, names: Sequence[str] | None, null: Sequence[str]) -> None:
        self._path = path
        self._names = names
        self._null = frozenset(null)

    def text(self, column: Column, key: str) -> Text:
        """The text of a column, None where it is empty. Raises MappingError when the file has no such column."""
        index, null, label = self._index(column, key), self._null, str(column)

        def read(row: Row) -> str | None:
            try:
                found = row.cells[index]
            except IndexError:
                raise RowError(f"no column {label}: the row has {len(row.cells)}") from None
            return None if found in null else found

        return read

    def needed(self, column: Column, key: str) -> Needed:
        """The text of a column that must not be empty."""
        return _need(self.text(column, key), str(column))

    def value(self, value: Value | None, key: str, row_id: Callable[[Row], str] | None = None) -> Text:
        """A value: a column's text, a constant, or the row's own id."""
        if value is None:
            return lambda row: None
        if value.column is not None:
            return self.text(value.column, key)
        if value.row and row_id is not None:
            return row_id
        return lambda row: value.value

    def needed_value(self, value: Value, key: str, row_id: Callable[[Row], str] | None = None) -> Needed:
        """A value that must not be empty."""
        return _need(self.value(value, key, row_id), str(value.column))

    def test(self, condition: Condition | None, key: str, default: bool) -> Test:
        """Whether a row meets a condition; `default` where there is none."""
        if condition is None:
            return lambda row: default
        read = self.text(condition.column, f"{key}.column")
        if condition.texts is None:
            return lambda row: read(row) is not None
        texts = frozenset(condition.texts)
        return lambda row: read(row) in texts

    def position(self, position: Position, key: str) -> Callable[[Row], int]:
        """A position counted from 0."""
        read, first = self.needed(position.column, f"{key}.column"), position.first or 0
        return lambda row: parse_whole(read(row), str(position.column)) - first

    def moment(self, times: Times, column: Column | None, key: str) -> Moment:
        """When a row happened, seconds since the epoch; `column` stands in the place of the one in section `time`."""
        parse = make_parser(times)
        if column is None and times.value is not None:
            constant = parse_constant(parse, times.value, self._path)
            return lambda row: constant
        chosen = times.column if column is None else column
        assert chosen is not None
        read = self.needed(chosen, key)
        return lambda row: parse(read(row))

    def _index(self, column: Column, key: str) -> int:
        if isinstance(column, int):
            if self._names is not None and column > len(self._names):
                raise MappingError(f"{self._path} has {len(self._names)} columns, {key} asks for number {column}")
            return column - 1
        if self._names is None:
            raise MappingError(f"{self._path} has no header (file.header = false): {key} = {column!r} must be a number from 1")
        if column not in self._names:
            close = difflib.get_close_matches(column, self._names, n=1)
            guess = f" (did you mean {close[0]}?)" if close else ""
            raise MappingError(f"{self._path} has no column {column!r} ({key}){guess}; its columns are {', '.join(self._names)}")
        return self._names.index(column)


def _need(read: Text, label: str) -> Needed:
    def needed(row: Row) -> str:
        found = read(row)
        if found is None:
            raise RowError(f"{label}: empty")
        return found

    return needed


def parse_whole(text: str, label: str) -> int:
    """Return a whole number. Raises RowError."""
    try:
        return int(text)
    except ValueError:
        raise RowError(f"{label}: {text!r} is no whole number") from None


def parse_constant(parse: Callable[[str], float], text: str, path: Path) -> float:
    """Return the time that stands in the mapping itself. Raises MappingError."""
    try:
        return parse(text)
    except RowError as error:
        raise MappingError(f"{path}: time.value: {error}") from None


def make_parser(times: Times) -> Callable[[str], float]:
    """Return the function that reads a time of this format as seconds since the epoch; it raises RowError."""
    zone = ZoneInfo(times.zone)

    @lru_cache(maxsize=65_536)
    def parse(text: str) -> float:
        try:
            match times.format:
                case "epoch_s":
                    return float(text)
                case "epoch_ms":
                    return float(text) / 1000
                case "rfc3339":
                    found = datetime.fromisoformat(text)
                case pattern:
                    found = datetime.strptime(text, pattern)
        except ValueError:
            raise RowError(f"time: {text!r} is not {times.format}") from None
        aware = found if found.tzinfo else found.replace(tzinfo=zone)
        return (aware - EPOCH) // MICROSECOND / 1_000_000

    return parse
