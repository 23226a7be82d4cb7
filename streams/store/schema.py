"""The tables of a shard's file: created in a new file, checked in an existing one, and upgraded in one of layout 2."""

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
# In layout 2 every list had deltas at once: its days count as rolled up completely, and nothing reads the length of its lists.
UPGRADE_2 = (
    "ALTER TABLE impressions ADD COLUMN length INTEGER",
    rollups.TABLES,
    "INSERT INTO folds SELECT day, NULL FROM (SELECT day FROM impressions UNION SELECT day FROM window_deltas)",
    "UPDATE state SET layout = 3",
)


class StoreError(Exception):
    """A shard cannot be used as requested; the message names its file."""


def prepare(con: duckdb.DuckDBPyConnection, path: Path, read_only: bool) -> None:
    """Create the tables of a new file; check and upgrade those of an existing one. Raises StoreError."""
    if not con.execute(HAS_STATE).fetchall()[0][0]:
        if read_only:
            raise StoreError(f"{path} is not a shard")
        owners = (deduplication, impressions, clicks, windows, rollups, cooccurrence, quarantine, retention, compaction, totals)
        _run(con, [owner.TABLES for owner in owners])
    layout, same_hash = con.execute(CHECK).fetchall()[0]
    if layout == 2 and not read_only:
        _run(con, UPGRADE_2)
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
