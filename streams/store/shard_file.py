"""Opens the DuckDB file of a shard, with the options by which counting was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

from streams.store.buffer_pool import LIMIT
from streams.store.schema import StoreError, prepare

OPTIONS: dict[str, Any] = {
    "threads": 1,
    "memory_limit": LIMIT,
    # A commit that brings the write-ahead log over this writes into the file instead, which saves a large batch the log. Every
    # checkpoint rewrites the ends of the tables, so small batches share one: some 10,000 events, 15 to 25 ms.
    "checkpoint_threshold": "4MB",
    "max_vacuum_tasks": 0,  # else every fourth checkpoint merges row groups for seconds
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
}
# FSST halves the file and doubles what a checkpoint costs. DuckDB ignores this one among the options of a connection.
WITHOUT_FSST = "SET disabled_compression_methods = 'fsst,dict_fsst'"
IN_USE = "Could not set lock on file"
"""How DuckDB's error begins when another process has the file open, for reading too."""


class ShardInUse(StoreError):
    """Another process has the shard's file open; the text has DuckDB's words, which name the process if that is known."""


class OffsetGap(StoreError):
    """Records are missing between those that the shard has applied and those given to it."""


def open_shard_file(path: Path, read_only: bool) -> duckdb.DuckDBPyConnection:
    """Open a shard's file, or create it. Raises ShardInUse, and StoreError when it cannot be read."""
    if not read_only:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        con = duckdb.connect(str(path), read_only=read_only, config=OPTIONS)
    except duckdb.Error as error:
        problem = ShardInUse if IN_USE in str(error) else StoreError
        raise problem(f"cannot open shard {path}: {error}") from error
    try:
        con.execute(WITHOUT_FSST)
        prepare(con, path, read_only)
    except BaseException:
        con.close()
        raise
    return con
