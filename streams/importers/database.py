"""The DuckDB that a mapping runs in: it reads the log that it is given and nothing else, in bounded memory.

A mapping may be somebody else's text. Without access to files but the log's own, without extensions, and with its settings locked
DuckDB refuses every other file, address and setting. Its views take no statement that writes, so a mapping is tried as one first:
a SELECT may otherwise hold a COPY in a WITH clause, which overwrites the log that it is allowed to read. A function that runs a
text as SQL would go around that, so none may be called.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import duckdb

from streams.events.schema import members

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


RUNS_SQL = frozenset({"query", "query_table", "json_execute_serialized_sql"})
"""DuckDB's functions that run a text as SQL. Without them a mapping can call only the functions that its own text names."""


def open_database(spill: Path, readable: Sequence[Path]) -> duckdb.DuckDBPyConnection:
    """Return a database in memory that may read these files alone; what outgrows its memory goes into the folder `spill`."""
    con = duckdb.connect(":memory:")
    own = {"temp_directory": _quote(spill), "allowed_paths": f"[{', '.join(map(_quote, readable))}]"}
    for name, value in (own | SETTINGS).items():
        con.execute(f"SET {name} = {value}")
    return con


def bind_mapping(con: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """Return the rows that a SELECT will answer; it runs when they are read. Raises duckdb.Error for one that would write."""
    if called := RUNS_SQL & set(_functions(con, sql)):
        raise duckdb.PermissionException(f"a mapping may not call {', '.join(sorted(called))}, which runs a text as SQL")
    con.execute(f"CREATE VIEW events AS {sql}")
    return con.sql(sql)


def _functions(con: duckdb.DuckDBPyConnection, sql: str) -> Iterator[str]:
    """Yield the names of all functions that a SELECT calls, in lower case. Raises duckdb.Error for what is no SELECT."""
    parsed = json.loads(con.execute("SELECT json_serialize_sql($1)", [sql]).fetchall()[0][0])
    if parsed["error"]:
        raise duckdb.ParserException(parsed["error_message"])
    level = [parsed]
    while level:
        yield from (str(node["function_name"]).lower() for node in level if isinstance(node, dict) and "function_name" in node)
        level = [inner for node in level for inner in members(node)]


def _quote(path: Path) -> str:
    text = str(path).replace("'", "''")
    return f"'{text}'"
