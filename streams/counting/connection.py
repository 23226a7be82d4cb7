"""Feeds: Arrow tables handed to a connection's statements under fixed names, and the transaction that these write in.

A batch runs some fifteen statements over tables that differ from batch to batch. Registering a table with DuckDB and taking it
away again costs as much as a small statement, so each name is registered once, as a source that answers with its latest table.
For the same reason what is asked again and again is planned once.

Most batches only add rows. An INSERT and a COMMIT cost half a millisecond and three beside their rows, so added rows wait in
memory until somebody writes them, those of many batches at once; or until a statement comes that must see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa

PutOff = dict[str, tuple[str, list[pa.Table]]]
"""Of each statement the name that it reads, and the tables that it is to be run over."""
NO_TABLES: Mapping[str, pa.Table] = MappingProxyType({})
PLANNED = (duckdb.StatementType.SELECT, duckdb.StatementType.INSERT, duckdb.StatementType.DELETE)


def run_to_end(con: duckdb.DuckDBPyConnection, sql: str, params: dict[str, Any] | None = None) -> None:
    """Run an INSERT, UPDATE, DELETE or definition to its end.

    DuckDB was seen to run a DELETE whose result nobody fetched only in part before the next query looked at the table.
    """
    con.execute(sql, params).fetchall()


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
    in_transaction: bool = False
    _feeds: dict[str, _Feed] = field(default_factory=dict)
    _registered: set[str] = field(default_factory=set)
    _statements: dict[str, duckdb.Statement] = field(default_factory=dict)
    _put_off: PutOff = field(default_factory=dict)

    def execute(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> duckdb.DuckDBPyConnection:
        """Run a constant statement over these tables by these names, in the transaction, over all that was added before.

        It is parsed once, and planned once if it has no `params`. Where its catalog has changed DuckDB plans it anew by itself.
        """
        self.begin()
        return self._run(sql, params, tables)

    def change(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> None:
        """Run a constant INSERT, UPDATE, DELETE or definition over these tables in the same way, to its end."""
        self.execute(sql, params, **tables).fetchall()

    def fetch_table(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> pa.Table:
        """Return what a query over these tables gives, in the transaction, over all that was added before."""
        self.begin()
        return self.look_up_table(sql, params, **tables)

    def look_up(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> duckdb.DuckDBPyConnection:
        """Run a query that need not see the added rows that are still put off."""
        return self._run(sql, params, tables)

    def look_up_table(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> pa.Table:
        """Return what a query over these tables gives that need not see the added rows that are still put off."""
        for name, table in tables.items():
            self.feed(name, table)
        return self.con.sql(sql, params=params or {}).to_arrow_table()

    def add(self, sql: str, name: str, table: pa.Table) -> None:
        """Put off an INSERT or DELETE over this table by this name. Two of different statements may be run in either order."""
        self._put_off.setdefault(sql, (name, []))[1].append(table)

    def find_added(self, sql: str) -> list[pa.Table]:
        """Return the tables of a statement that is put off."""
        return self._put_off.get(sql, ("", []))[1]

    def put_off(self) -> PutOff:
        """Return what is put off, as it stands."""
        return {sql: (name, [*tables]) for sql, (name, tables) in self._put_off.items()}

    def begin(self) -> None:
        """Begin a transaction where none is open, and run in it what was put off."""
        if not self.in_transaction:
            self._run("BEGIN")
            self.in_transaction = True
        put_off, self._put_off = self._put_off, {}
        for sql, (name, tables) in put_off.items():
            if any(map(len, tables)):
                self._run(sql, None, {name: pa.concat_tables(tables)}).fetchall()  # as in `run_to_end`

    def commit(self) -> None:
        """Write what was put off, and all that the transaction did."""
        self.begin()
        self._run("COMMIT")
        self.in_transaction = False

    def roll_back(self, put_off: PutOff) -> None:
        """Undo what the transaction did, if one is open; what was put off before it is so again."""
        self._put_off = put_off
        self._registered.clear()  # it takes back the names that were registered in it
        if self.in_transaction:
            self.in_transaction = False
            # A COMMIT that failed (disk full) has ended the transaction itself, and where it was a checkpoint's, the connection.
            with suppress(duckdb.TransactionException, duckdb.FatalException):
                self.con.execute("ROLLBACK")

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

    def _run(
        self, sql: str, params: dict[str, Any] | None = None, tables: Mapping[str, pa.Table] = NO_TABLES
    ) -> duckdb.DuckDBPyConnection:
        for name, table in tables.items():
            self.feed(name, table)
        if (statement := self._statements.get(sql)) is None:
            statement = self._statements[sql] = self._prepare(sql, params is not None)
        return self.con.execute(statement, params)

    def _prepare(self, sql: str, has_params: bool) -> duckdb.Statement:
        (statement,) = self.con.extract_statements(sql)
        if has_params or statement.type not in PLANNED:
            return statement
        name = f"planned_{len(self._statements)}"
        self.con.execute(f"PREPARE {name} AS {sql}")
        (run,) = self.con.extract_statements(f"EXECUTE {name}")
        return run
