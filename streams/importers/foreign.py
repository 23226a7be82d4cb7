"""Foreign logs: rows of a table become event lines by a mapping.

Ids that the log does not have are made from the file's name, the row's number and its text, so that a file replayed twice counts
once. A row that makes no event becomes a line of type `unmapped` with its text and what is wrong: the worker quarantines it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from streams.importers.cells import Cells, Test
from streams.importers.grouping import Group, Groups
from streams.importers.mapping import Mapping
from streams.importers.sections import Fields, Make, digest, make_grouped, make_section
from streams.importers.sources import Source, bare_name
from streams.importers.tables import Row, RowError, Table

UNMAPPED = "unmapped"
"""The `type` of a line that stands for a row that could not be mapped; no consumer accepts it."""

_encode = msgspec.json.Encoder().encode


def read_foreign(source: Source, mapping: Mapping) -> Iterator[bytes]:
    """Return the event lines of a table. Raises MappingError at once when the mapping does not fit the file."""
    return _Mapper(source, mapping).lines()


class _Mapper:
    """One file and its mapping, with the columns found."""

    def __init__(self, source: Source, mapping: Mapping) -> None:
        self._table = Table(source, mapping.file)
        self._name = bare_name(source.path)
        cells = Cells(source.path, self._table.columns, mapping.file.null)
        self._ignored = cells.test(mapping.file.ignore, "file.ignore", default=False)
        self._groups = Groups(mapping.impression.span if mapping.impression is not None else 1)
        self._makers: list[tuple[Test, Make]] = []
        self._make_group: Callable[[Group], list[Fields]] | None = None
        for kind in ("query", "impression", "click"):
            if (section := getattr(mapping, kind)) is not None:
                test = cells.test(section.when, f"{kind}.when", default=True)
                self._makers.append((test, self._maker(kind, mapping, cells)))

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of all rows; an impression of several rows comes when its last one has been read."""
        last_query: Fields = {}
        for row in self._table.rows():
            for event in self._make(row):
                # One search with several clicked results is several rows in many logs, and one event.
                if event == last_query:
                    continue
                if event["type"] == "query":
                    last_query = event
                yield _encode(event)
            for group in self._groups.ripe(row.number):
                yield from self._complete(group)
        for group in self._groups.rest():
            yield from self._complete(group)

    def _maker(self, kind: str, mapping: Mapping, cells: Cells) -> Make:
        if kind != "impression" or mapping.impression is None or not mapping.impression.group:
            return make_section(kind, mapping, cells, self._row_id)
        group_id, self._make_group = make_grouped(mapping, cells, self._row_id, self._name)

        def gather(row: Row) -> list[Fields]:
            self._groups.add(group_id(row), row)
            return []

        return gather

    def _make(self, row: Row) -> list[Fields]:
        try:
            if row.fault is not None:
                raise RowError(row.fault)
            if self._ignored(row):
                return []
            makers = [make for test, make in self._makers if test(row)]
            if not makers:
                raise RowError("no section takes this row (when), and file.ignore does not either")
            return [event for make in makers for event in make(row)]
        except RowError as error:
            return [self._reject([row], str(error))]

    def _complete(self, group: Group) -> Iterator[bytes]:
        assert self._make_group is not None
        try:
            made = self._make_group(group)
        except RowError as error:
            made = [self._reject(group.rows, f"impression {group.id!r}: {error}")]
        yield from map(_encode, made)

    def _row_id(self, row: Row, kind: str) -> str:
        return digest(kind, self._name, row.number, row.text)

    def _reject(self, rows: list[Row], error: str) -> dict[str, Any]:
        text = "\n".join(row.text for row in rows)
        # A byte that is not text came as a lone surrogate: what quotes it would be no UTF-8 either.
        said = error.encode("utf-8", "backslashreplace").decode()
        line = {"type": UNMAPPED, "event_id": self._row_id(rows[0], UNMAPPED), "file": self._name, "row": rows[0].number}
        try:
            text.encode()
        except UnicodeEncodeError:
            return line | {"error": said, "text_base64": base64.b64encode(self._table.original(text)).decode()}
        return line | {"error": said, "text": text}
