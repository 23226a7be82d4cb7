"""Foreign logs: the rows that a mapping answers become event lines, and rows that cannot be read become lines to quarantine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa

from streams.events.schema import printable
from streams.importers.arrow_rows import BATCH_ROWS, read_rows
from streams.importers.database import bind_mapping, open_database
from streams.importers.formats import find_parts
from streams.importers.mapping import Mapping, MappingError, in_one_line
from streams.importers.sources import LogFileError
from streams.importers.staging import REFUSED, stage_files
from streams.importers.unmapped import digest
from streams.importers.views import create_view

NEEDED = ("type", "ts", "session_id", "query")
"""The fields that every event has; an `event_id` that a mapping does not give is made from the others."""
_NAN = re.compile(r"\s*[+-]?nan\s*", re.IGNORECASE)
_encode = msgspec.json.Encoder().encode


class ForeignLog:
    """A log and a mapping, opened for one reading. Opening raises LogFileError where the mapping does not fit the log.

    Everything that is written meanwhile lies in one temporary folder, which closing removes.
    """

    def __init__(self, path: Path, mapping: Mapping) -> None:
        self._path, self._mapping = path, mapping
        parts = find_parts(path)
        self.files = len(parts)
        self.size = sum(part.path.stat().st_size for part in parts)
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="queryloop-mapping-")))
            self._files = stage_files(parts, self._folder)
            if not parts:
                self._stack = stack.pop_all()
                return
            readable = [path for file in self._files for path in (file.link, file.rewritten)]
            self._con = stack.enter_context(open_database(self._folder / "spill", readable))
            with self._explaining(LogFileError, f"{path}: cannot be read"):
                create_view(self._con, parts[0].format, self._files, self._folder)
            with self._explaining(MappingError, mapping.name):
                self._rows = bind_mapping(self._con, mapping.sql)
            self._require_fields(self._rows.columns)
            self._stack = stack.pop_all()

    @property
    def position(self) -> int:
        """Bytes of the log that are read, as DuckDB estimates."""
        return int(self.size * max(self._con.query_progress(), 0) / 100) if self.files else 0

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the events, numbered in the order of the mapping's rows, then the rows that could not be read.

        A log whose files are all empty has none. Raises LogFileError.
        """
        yield from enumerate(self._events(), 1) if self.files else ()

    def _events(self) -> Iterator[bytes]:
        kinds = dict(zip(self._rows.columns, map(str, self._rows.types), strict=True))
        embedded = {name: kind for name, kind in kinds.items() if kind in ("JSON", "JSON[]")}
        with self._explaining(MappingError, f"{self._mapping.name} on {self._path}"):
            for batch in self._batches():
                for row in read_rows(batch):
                    yield encode_event(row, embedded)
        if (self._folder / REFUSED).exists():
            with (self._folder / REFUSED).open("rb") as refused:
                for line in refused:
                    yield line.rstrip(b"\n")

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the mapping's rows. DuckDB works on another thread, so that Ctrl-C need not wait for the end of a batch."""
        with ThreadPoolExecutor(1, "mapping") as threads:
            reader = self._await(threads.submit(self._rows.to_arrow_reader, BATCH_ROWS))
            while (batch := self._await(threads.submit(next, reader, None))) is not None:
                yield batch

    def _await(self, pending: Future[Any]) -> Any:
        try:
            return pending.result()
        except BaseException:
            self._con.interrupt()
            raise

    def close(self) -> None:
        """Close the database and remove what was written."""
        self._stack.close()

    def _require_fields(self, names: list[str]) -> None:
        named = f"its columns are {printable(', '.join(names))}"
        if missing := [name for name in NEEDED if name not in names]:
            raise MappingError(f"{self._mapping.name} answers no column {', '.join(missing)}, a field of every event; {named}")
        if len(set(names)) < len(names):
            raise MappingError(f"{self._mapping.name} answers two columns of one name; {named}")

    @contextmanager
    def _explaining(self, kind: type[LogFileError], place: str) -> Iterator[None]:
        """Say an error of DuckDB's in one line, with the log's own file names."""
        try:
            yield
        except duckdb.Error as error:
            said = str(error)
            for file in self._files:
                said = said.replace(str(file.link), file.path.name).replace(str(file.rewritten), file.path.name)
            raise kind(f"{place}: {in_one_line(said)}") from error
        except (OverflowError, TypeError) as error:
            raise kind(f"{place}: a row cannot be written as JSON: {error}") from error
        except (pa.ArrowException, OSError) as error:  # rows too large for one batch, lists nested too deep
            raise kind(f"{place}: its rows cannot be read: {in_one_line(str(error))}") from error


def encode_event(row: dict[str, Any], embedded: dict[str, str]) -> bytes:
    """Return a row as a line: JSON goes in as it is, and a missing `event_id` is made from all other fields."""
    for name, kind in embedded.items():
        if name in row:
            row[name] = _embed(row[name]) if kind == "JSON" else [_embed(one) for one in row[name]]
            if row[name] is None:
                del row[name]
    if "event_id" not in row:
        row["event_id"] = digest(_encode(row))
    return _encode(row)


def _embed(text: str | None) -> msgspec.Raw | None:
    """Return JSON without line breaks, which may only be white space in it; None for NaN, which DuckDB takes for JSON."""
    return None if text is None or _NAN.fullmatch(text) else msgspec.Raw(text.replace("\n", " "))
