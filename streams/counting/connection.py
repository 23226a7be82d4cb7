"""A shard's DuckDB connection: Arrow tables as inputs of its statements, one transaction, and inserts that are deferred.

A batch runs some fifteen statements over tables that differ from batch to batch. To register a table with DuckDB and unregister
it costs as much as a small statement, so each name is registered once, as a source that returns its current table. For the same
reason each constant statement is planned once.

Most batches only insert rows. An INSERT and a COMMIT cost half a millisecond and three beside their rows. So inserts are deferred
in memory, and run for many batches at once: when they are written, or when a statement needs to see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import duckdb
import pyarrow as pa

DeferredWrites = dict[str, tuple[str, list[pa.Table]]]
"""By statement: the name of its input, and the tables that it has yet to run over."""
NO_TABLES: Mapping[str, pa.Table] = MappingProxyType({})
PREPARED_TYPES = (duckdb.StatementType.SELECT, duckdb.StatementType.INSERT, duckdb.StatementType.DELETE)


def run_to_end(con: duckdb.DuckDBPyConnection, sql: str, params: dict[str, Any] | None = None) -> None:
    """Run an INSERT, UPDATE, DELETE or definition to its end.

    DuckDB was seen to run a DELETE whose result nobody fetched only in part before the next query looked at the table.
    """
    con.execute(sql, params).fetchall()


@dataclass(slots=True)
class _RegisteredInput:
    """What DuckDB reads under a registered name: an Arrow stream (the PyCapsule interface) of the current table."""

    table: pa.Table
    empty: pa.Table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


@dataclass(slots=True)
class ShardConnection:
    """A DuckDB connection (`con`), the inputs registered with it and its deferred writes.

    `execute`, `change` and `fetch_table` open the transaction and run the deferred writes first. `look_up` and `look_up_table`
    do neither, so they see only what was written before.
    """

    con: duckdb.DuckDBPyConnection
    in_transaction: bool = False
    _inputs: dict[str, _RegisteredInput] = field(default_factory=dict)
    _registered: set[str] = field(default_factory=set)
    _statements: dict[str, duckdb.Statement] = field(default_factory=dict)
    _deferred: DeferredWrites = field(default_factory=dict)

    def execute(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> duckdb.DuckDBPyConnection:
        """Run a constant statement over these tables by these names, in the transaction and after all deferred writes.

        It is parsed once, and planned once if it has no `params`. When its catalog has changed DuckDB plans it again by itself.
        """
        self.begin()
        return self._run(sql, params, tables)

    def change(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> None:
        """Run a constant INSERT, UPDATE, DELETE or definition as `execute` does, to its end."""
        self.execute(sql, params, **tables).fetchall()

    def fetch_table(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> pa.Table:
        """Return the result of a query over these tables, in the transaction and after all deferred writes."""
        self.begin()
        return self.look_up_table(sql, params, **tables)

    def look_up(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> duckdb.DuckDBPyConnection:
        """Run a query that does not need to see deferred writes."""
        return self._run(sql, params, tables)

    def look_up_table(self, sql: str, params: dict[str, Any] | None = None, **tables: pa.Table) -> pa.Table:
        """Return the result of a query over these tables that does not need to see deferred writes."""
        for name, table in tables.items():
            self.register(name, table)
        return self.con.sql(sql, params=params or {}).to_arrow_table()

    def defer(self, sql: str, name: str, table: pa.Table) -> None:
        """Defer an INSERT or DELETE over this table by this name. Deferred writes of two statements may run in either order."""
        self._deferred.setdefault(sql, (name, []))[1].append(table)

    def find_deferred(self, sql: str) -> list[pa.Table]:
        """Return the tables that a deferred statement has yet to run over."""
        return self._deferred.get(sql, ("", []))[1]

    def copy_deferred(self) -> DeferredWrites:
        """Return the current deferred writes, for `roll_back`."""
        return {sql: (name, [*tables]) for sql, (name, tables) in self._deferred.items()}

    def begin(self) -> None:
        """Begin a transaction unless one is open, and run the deferred writes in it."""
        if not self.in_transaction:
            self._run("BEGIN")
            self.in_transaction = True
        deferred, self._deferred = self._deferred, {}
        for sql, (name, tables) in deferred.items():
            if any(map(len, tables)):
                self._run(sql, None, {name: pa.concat_tables(tables)}).fetchall()  # as in `run_to_end`

    def commit(self) -> None:
        """Write all that the transaction did and all deferred writes."""
        self.begin()
        self._run("COMMIT")
        self.in_transaction = False

    def roll_back(self, deferred: DeferredWrites) -> None:
        """Undo the transaction, if one is open, and defer again what was deferred before it."""
        self._deferred = deferred
        self._registered.clear()  # it takes back the names that were registered in it
        if self.in_transaction:
            self.in_transaction = False
            # A COMMIT that failed (disk full) has ended the transaction itself, and where it was a checkpoint's, the connection.
            with suppress(duckdb.TransactionException, duckdb.FatalException):
                self.con.execute("ROLLBACK")

    def register(self, name: str, table: pa.Table) -> None:
        """Let statements read this table by this name. Use a name for one schema only: another one discards all plans."""
        found = self._inputs.setdefault(name, _RegisteredInput(table, table.slice(0, 0)))
        found.table = table
        if name not in self._registered or found.empty.schema != table.schema:
            found.empty = table.schema.empty_table()
            self.con.register(name, found)
            self._registered.add(name)
            self._statements.clear()  # a plan would go on to read the columns of before

    def clear_inputs(self) -> None:
        """Free the registered tables; their names remain, with empty tables."""
        for one in self._inputs.values():
            one.table = one.empty

    def _run(
        self, sql: str, params: dict[str, Any] | None = None, tables: Mapping[str, pa.Table] = NO_TABLES
    ) -> duckdb.DuckDBPyConnection:
        for name, table in tables.items():
            self.register(name, table)
        if (statement := self._statements.get(sql)) is None:
            statement = self._statements[sql] = self._prepare(sql, params is not None)
        return self.con.execute(statement, params)

    def _prepare(self, sql: str, has_params: bool) -> duckdb.Statement:
        (statement,) = self.con.extract_statements(sql)
        if has_params or statement.type not in PREPARED_TYPES:
            return statement
        name = f"planned_{len(self._statements)}"
        self.con.execute(f"PREPARE {name} AS {sql}")
        (run,) = self.con.extract_statements(f"EXECUTE {name}")
        return run
