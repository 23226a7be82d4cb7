"""Layouts: the tables of a shard's file, made in a new one, checked in an old one, and brought up to date in one of layout 2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb

from streams.counting import clicks, cooccurrence, deduplication, impressions, quarantine, retention, rollups, windows
from streams.store import compaction, totals
from streams.store.totals import LAYOUT

HAS_STATE = "SELECT count(*) > 0 FROM duckdb_tables() WHERE table_name = 'state'"
CHECK = "SELECT layout, hash_probe = hash('queryloop') FROM state"
REHASH = (
    "UPDATE seen SET key = hash(event_id)",
    "UPDATE impressions SET key = hash(impression_id)",
    "UPDATE clicks SET key = hash(impression_id)",
    "UPDATE pending SET key = hash(impression_id)",
    "UPDATE queries SET session_key = hash(session_id)",
    "UPDATE state SET hash_probe = hash('queryloop')",
)
# Until layout 3 every list had its deltas at once: its days are folded whole, and nobody asks how long it is.
FROM_2 = (
    "ALTER TABLE impressions ADD COLUMN length INTEGER",
    rollups.TABLES,
    "INSERT INTO folds SELECT day, NULL FROM (SELECT day FROM impressions UNION SELECT day FROM window_deltas)",
    "UPDATE state SET layout = 3",
)


class StoreError(Exception):
    """A shard that cannot be used as asked; the text names its file."""


def prepare(con: duckdb.DuckDBPyConnection, path: Path, read_only: bool) -> None:
    """Make the tables of a new file; check an old one, and bring it up to date. Raises StoreError."""
    if not con.execute(HAS_STATE).fetchall()[0][0]:
        if read_only:
            raise StoreError(f"{path} holds no shard")
        owners = (deduplication, impressions, clicks, windows, rollups, cooccurrence, quarantine, retention, compaction, totals)
        _run(con, [owner.TABLES for owner in owners])
    layout, same_hash = con.execute(CHECK).fetchall()[0]
    if layout == 2 and not read_only:
        _run(con, FROM_2)
    elif layout == 2:
        raise StoreError(f"shard {path} has layout 2, this version reads {LAYOUT}: start a worker on it once, which changes it")
    elif layout != LAYOUT:
        raise StoreError(
            f"shard {path} has layout {layout}, this version reads {LAYOUT}: replay its topic into a new data folder"
        )
    if not same_hash and not read_only:
        _run(con, REHASH)


def _run(con: duckdb.DuckDBPyConnection, statements: Sequence[str]) -> None:
    """Run statements in one transaction."""
    con.execute("BEGIN")
    for sql in statements:
        con.execute(sql)
    con.execute("COMMIT")
