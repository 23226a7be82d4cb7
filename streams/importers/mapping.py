"""A mapping: one SELECT of DuckDB that turns the rows of a foreign log, the view `log`, into rows of event fields.

Those that ship lie in the folder `mappings`. What a mapping may do is decided where it runs: `streams.importers.database`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import duckdb

from streams.events.schema import printable
from streams.importers.sources import LogFileError

SHIPPED = files("streams.importers").joinpath("mappings")


class MappingError(LogFileError):
    """A mapping that cannot be used; the text names it and says what is wrong."""


@dataclass(frozen=True)
class Mapping:
    """The name that errors call a mapping by, and its statement. Raises MappingError unless that is one SELECT."""

    name: str
    sql: str

    def __post_init__(self) -> None:
        with duckdb.connect(":memory:") as con:
            try:
                found = [statement.type.name for statement in con.extract_statements(self.sql)]
            except duckdb.Error as error:
                raise MappingError(f"{self.name}: {in_one_line(str(error))}") from error
        if found != ["SELECT"]:
            raise MappingError(f"{self.name}: a mapping is exactly one SELECT, this has {', '.join(found) or 'no statement'}")


def shipped_names() -> list[str]:
    """The names of the mappings that ship."""
    return sorted(one.name for one in SHIPPED.iterdir() if one.name.endswith(".sql"))


def read_mapping(path: Path) -> Mapping:
    """Return the mapping in a file or, where there is none and the name is bare, the one of that name that ships.

    Raises MappingError.
    """
    try:
        sql = _find(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MappingError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return Mapping(str(path), sql)


def _find(path: Path) -> Path:
    if path.exists() or path.name != str(path):
        return path
    if path.name not in shipped_names():
        raise MappingError(f"{path}: no such file, and no mapping of that name ships: {', '.join(shipped_names())}")
    return Path(str(SHIPPED.joinpath(path.name)))


def in_one_line(message: str) -> str:
    """A message of DuckDB's in one printable line, with the line of the statement that it points at."""
    said, _, rest = message.partition("\n\n")
    place = rest.partition("LINE ")[2].partition(":")[0]
    return printable(" ".join(said.split())) + (f" (line {place})" if place.isdigit() else "")
