"""The DuckDB that a mapping runs in: it reads the log that it is given and nothing else, in bounded memory.

A mapping may be somebody else's text. Without access to files but the log's own, without extensions, and with its settings locked
DuckDB refuses every other file, address and setting. Its views take no statement that writes, so a mapping is tried as one first:
a SELECT may otherwise hold a COPY in a WITH clause, which overwrites the log that it is allowed to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

SETTINGS = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "'1GB'",
    "TimeZone": "'UTC'",
    "enable_progress_bar": "true",  # for how far it is; it prints nothing
    "enable_progress_bar_print": "false",
    "enable_external_access": "false",
    "lock_configuration": "true",
}


def open_database(spill: Path, readable: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """Return a database in memory that may read these files alone; what outgrows its memory goes into the folder `spill`."""
    con = duckdb.connect(":memory:")
    own = {"temp_directory": _quote(spill), "allowed_paths": f"[{', '.join(map(_quote, readable))}]"}
    for name, value in (own | SETTINGS).items():
        con.execute(f"SET {name} = {value}")
    return con


def bind_mapping(con: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Return the rows that a SELECT will answer; it runs when they are read. Raises duckdb.Error for one that would write."""
    con.execute(f"CREATE VIEW events AS {sql}")
    return con.sql(sql)


def _quote(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"
