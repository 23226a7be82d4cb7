"""The tables of a shard's file: created in a new file, checked in an existing one, and upgraded in one of an earlier layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from streams.counting import clicks, cooccurrence, deduplication, impressions, quarantine, retention, rollups, windows
from streams.counting.caps import left_out
from streams.counting.clicks import to_table
from streams.counting.connection import run_to_end
from streams.counting.key_index import SESSION_KEY, key_sql
from streams.events.line_decoder import read_session
from streams.store import compaction, totals
from streams.store.totals import LAYOUT

HAS_STATE = "SELECT count(*) > 0 FROM duckdb_tables() WHERE table_name = 'state'"
CHECK = "SELECT layout, hash_probe = hash('queryloop') FROM state"
# `seen` has no sessions: they are in the tables of the events. What is in none of them any more was a repeat, and can only be
# one again: a version of an impression that another one beat, or a click on a position that was clicked before.
REHASH = (
    *(f"UPDATE {table} SET key = {key_sql('impression_id')}" for table in ("impressions", "clicks", "pending")),
    f"UPDATE queries SET session_key = {SESSION_KEY.format(session='session_id')}",
    """
    CREATE TEMP TABLE sessions AS
    SELECT event_id, any_value(session_id) AS session_id FROM (
        SELECT event_id, session_id FROM queries UNION ALL SELECT event_id, session_id FROM impressions
        UNION ALL SELECT event_id, session_id FROM clicks UNION ALL SELECT event_id, session_id FROM pending
        UNION ALL SELECT event_id, session_id FROM quarantine WHERE event_id IS NOT NULL
    ) GROUP BY event_id
    """,
    f"UPDATE seen SET key = {key_sql('s.event_id', 's.session_id')} FROM sessions s WHERE seen.event_id = s.event_id",
    "DROP TABLE sessions",
    "UPDATE state SET hash_probe = hash('queryloop')",
)
# In layout 2 every list had deltas at once: its days count as rolled up completely, and nothing reads the length of its lists.
UPGRADE_2 = (
    "ALTER TABLE impressions ADD COLUMN length INTEGER",
    rollups.TABLES,
    "INSERT INTO folds SELECT day, NULL FROM (SELECT day FROM impressions UNION SELECT day FROM window_deltas)",
    "UPDATE state SET layout = 3",
)
# In layout 3 an id was the same thing in every session of the shard. Keys are of an id in its session since.
UPGRADE_3 = (
    *(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS session_id VARCHAR" for table in ("clicks", "pending", "quarantine")),
    *(f"UPDATE {table} SET session_id = json_extract_string(decode(raw), '$.session_id')" for table in ("clicks", "pending")),
)
BAD_EVENTS = "SELECT id, reason, event_id, raw FROM quarantine WHERE raw IS NOT NULL"
IDENTIFY = "UPDATE quarantine SET session_id = k.session_id, digest = k.digest FROM known k WHERE quarantine.id = k.id"
KNOWN = pa.schema([("id", pa.int64()), ("session_id", pa.string()), ("digest", pa.binary())])
# Layout 4 had no caps, and erased nothing.
UPGRADE_4 = (
    left_out.TABLES,
    "ALTER TABLE state ADD COLUMN erased BIGINT DEFAULT 0",
    "UPDATE state SET layout = 5",
)
UPGRADED = range(2, LAYOUT)


class StoreError(Exception):
    """A shard cannot be used as requested; the message names its file."""


def prepare(con: duckdb.DuckDBPyConnection, path: Path, read_only: bool) -> None:
    """Create the tables of a new file; check and upgrade those of an existing one. Raises StoreError."""
    if not con.execute(HAS_STATE).fetchall()[0][0]:
        if read_only:
            raise StoreError(f"{path} is not a shard")
        counting = (deduplication, impressions, clicks, windows, rollups, cooccurrence, quarantine, retention)
        _run(con, [owner.TABLES for owner in (*counting, compaction, totals, left_out)])
    layout, same_hash = con.execute(CHECK).fetchall()[0]
    if layout in UPGRADED and not read_only:
        _upgrade(con, layout)
    elif layout in UPGRADED:
        raise StoreError(
            f"shard {path} has layout {layout}, this version reads {LAYOUT}: start a worker on it once, which changes it"
        )
    elif layout != LAYOUT:
        raise StoreError(
            f"shard {path} has layout {layout}, this version reads {LAYOUT}: replay its topic into a new data folder"
        )
    if not same_hash and not read_only:
        _run(con, REHASH)


def _upgrade(con: duckdb.DuckDBPyConnection, layout: int) -> None:
    """Bring a file of an earlier layout to this one; after a crash it is done again from where the stored layout says."""
    if layout == 2:
        _run(con, UPGRADE_2)
    if layout < 4:
        _run(con, UPGRADE_3)
        con.execute("BEGIN")
        _identify_bad_events(con)
        for sql in (*REHASH, "UPDATE state SET layout = 4"):
            run_to_end(con, sql)
        con.execute("COMMIT")
    _run(con, UPGRADE_4)


def _identify_bad_events(con: duckdb.DuckDBPyConnection) -> None:
    """Give quarantine rows their session, and the digest that goes with it."""
    known = []
    for number, reason, event_id, raw in con.execute(BAD_EVENTS).fetchall():
        session_id = read_session(raw)
        known.append((number, session_id, quarantine.digest_of(reason, event_id, session_id, raw)))
    con.register("known", to_table(known, KNOWN))
    run_to_end(con, IDENTIFY)
    con.unregister("known")


def _run(con: duckdb.DuckDBPyConnection, statements: Sequence[str]) -> None:
    """Run statements in one transaction."""
    con.execute("BEGIN")
    for sql in statements:
        con.execute(sql)
    con.execute("COMMIT")
