"""Feeds: Arrow tables handed to a connection's statements under fixed names.

A batch runs some fifteen statements over tables that differ from batch to batch. Registering a table with DuckDB and taking it
away again costs as much as a small statement, so each name is registered once, as a source that answers with its latest table.
For the same reason what is asked again and again is planned once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

PLANNED = (duckdb.StatementType.SELECT, duckdb.StatementType.INSERT, duckdb.StatementType.DELETE)


@dataclass(slots=True)
class _Feed:
    """What DuckDB reads under a name: an Arrow stream (the PyCapsule interface) of the table that is there now."""

    table: pa.Table
    empty: pa.Table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


@dataclass(slots=True)
class Feeds:
    """A connection and the relations that its statements are fed by."""

    con: duckdb.DuckDBPyConnection
    _feeds: dict[str, _Feed] = field(default_factory=dict)
    _registered: set[str] = field(default_factory=set)
    _statements: dict[str, duckdb.Statement] = field(default_factory=dict)

    def execute(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> duckdb.DuckDBPyConnection:
        """Run a constant statement over these tables by these names. It is parsed once, and planned once if it has no `params`.

        Where its catalog has changed DuckDB plans it anew by itself.
        """
        for name, table in tables.items():
            self.feed(name, table)
        if (statement := self._statements.get(sql)) is None:
            statement = self._statements[sql] = self._prepare(sql, params is not None)
        return self.con.execute(statement, params)

    def fetch_table(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> pa.Table:
        """Return what a query over these tables gives."""
        for name, table in tables.items():
            self.feed(name, table)
        return self.con.sql(sql, params=params or {}).to_arrow_table()

    def feed(self, name: str, table: pa.Table) -> None:
        """Let statements read this table by this name until the name is fed again."""
        feed = self._feeds.setdefault(name, _Feed(table, table.slice(0, 0)))
        feed.table = table
        if name not in self._registered or feed.empty.schema != table.schema:
            feed.empty = table.schema.empty_table()
            self.con.register(name, feed)
            self._registered.add(name)
            self._statements.clear()  # a plan would go on to read the columns of before

    def drop_tables(self) -> None:
        """Let go of the tables; the names stay."""
        for feed in self._feeds.values():
            feed.table = feed.empty

    def forget(self) -> None:
        """Let go of the names too: a transaction that is undone takes back those that were registered in it."""
        self._registered.clear()

    def _prepare(self, sql: str, has_params: bool) -> duckdb.Statement:
        (statement,) = self.con.extract_statements(sql)
        if has_params or statement.type not in PLANNED:
            return statement
        name = f"planned_{len(self._statements)}"
        self.con.execute(f"PREPARE {name} AS {sql}")
        (run,) = self.con.extract_statements(f"EXECUTE {name}")
        return run
