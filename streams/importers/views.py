"""The view `log`: how DuckDB reads each format of a foreign log.

Texts stay as they are written: nothing that looks like a date, a number or a UUID is turned into one. File names and the names of
columns reach DuckDB as values of variables, never as SQL. A mapping may use `getvariable('log')`, the list of files, as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from streams.importers.formats import Format
from streams.importers.sources import BLOCK_BYTES, MAX_LINE_BYTES
from streams.importers.staging import StagedFile, rewrite_lines, rewrite_tables

PARQUET = "SELECT * FROM read_parquet(getvariable('files'), union_by_name = true)"
JSON = "SELECT * FROM read_json(getvariable('files'), format = '{format}', records = true, maximum_object_size = {bytes}, {more})"
# Each thread of each scan holds buffers for the largest object; a line that fits into none is cut and refused.
MAX_OBJECT_BYTES = MAX_LINE_BYTES + BLOCK_BYTES
# The whole log is searched for its columns, once: DuckDB would otherwise do it again whenever it reads.
SEARCH = "union_by_name = true, sample_size = -1, field_appearance_threshold = 0, maximum_depth = {depth}"
FOUND = "columns = getvariable('columns'), auto_detect = false"
OTHER_TEXTS = re.compile(r'"(?:[^"]|"")*"|\b(?:UUID|DATE|TIME|TIMESTAMP)(?: WITH TIME ZONE)?(?=[,)\[]|$)')
"""In the name of a type: a quoted field, which is none, or a type that DuckDB makes of texts."""


def create_view(con: duckdb.DuckDBPyConnection, form: Format, files: Sequence[StagedFile], folder: Path) -> None:
    """Create the view `log` over files of one format. Raises LogFileError and duckdb.Error."""
    _set(con, "log", [str(file.link) for file in files])
    _set(con, "files", [str(file.link) for file in files])
    match form:
        case "parquet":
            source = PARQUET
        case "array":
            source = _objects(con, "array")
        case "ndjson":
            source = _lines(con, files, folder)
        case "table":
            rewrite_tables(files, folder)
            _set(con, "files", [str(file.rewritten) for file in files])
            source = PARQUET
    con.execute(f"CREATE VIEW log AS {source}")


def _lines(con: duckdb.DuckDBPyConnection, files: Sequence[StagedFile], folder: Path) -> str:
    try:
        return _objects(con, "newline_delimited")
    except duckdb.Error:
        if not rewrite_lines(files, folder):
            raise
    _set(con, "files", [str(file.rewritten) for file in files])
    return _objects(con, "newline_delimited")


def _objects(con: duckdb.DuckDBPyConnection, form: str) -> str:
    try:
        columns = _find_columns(con, form, depth=-1)
    except duckdb.NotImplementedException:  # two fields of one object that differ in case alone: objects stay JSON
        columns = _find_columns(con, form, depth=1)
    _set(con, "columns", columns)
    return JSON.format(format=form, bytes=MAX_OBJECT_BYTES, more=FOUND)


def _find_columns(con: duckdb.DuckDBPyConnection, form: str, depth: int) -> dict[str, str]:
    rows = JSON.format(format=form, bytes=MAX_OBJECT_BYTES, more=SEARCH.format(depth=depth))
    found = con.execute(f"DESCRIBE {rows}").fetchall()
    return {name: OTHER_TEXTS.sub(_as_text, kind) for name, kind, *_ in found}


def _as_text(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else "VARCHAR"


def _set(con: duckdb.DuckDBPyConnection, name: str, value: Any) -> None:
    con.execute(f"SET VARIABLE {name} = $1", [value])
