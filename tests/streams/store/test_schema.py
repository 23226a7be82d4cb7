"""A shard's file of an earlier layout is upgraded and goes on counting."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from streams.store.schema import StoreError
from streams.store.shard import CountingRules, Shard
from tests.support.logs import START, click, day, feed, impression, query, rows

RULES = CountingRules(retention_days=0)
LOG = [
    query("q1", START, "red"),
    impression("e1", START + 1, "i", ["a", "b"], query="red"),
    click("c1", START + 2, "i", 1),
    impression("e2", START + 86_400, "j", ["c"], query="blue"),
    click("waits", START + 4, "k", 1),
    click("outside", START + 4, "i", 9),
    b'{"type":"click","event_id":"bad","session_id":"s"}',
]
MORE = [
    *LOG,  # delivered again
    click("c2", START + 3, "i", 0),
    impression("e3", START + 5, "k", ["a", "b"], query="red"),
    impression("e0", START, "i", ["d"]),
]
# Layout 4 had no caps and no erasure.
TO_LAYOUT_4 = (
    "DROP VIEW window_counts",
    "DROP VIEW pair_counts",
    "DROP TABLE left_out",
    "DROP TABLE left_out_lists",
    "DROP TABLE left_out_pairs",
    "DROP TABLE caps",
    "ALTER TABLE state DROP COLUMN erased",
    "UPDATE state SET layout = 4",
)
# In layout 3 an id was the same thing in every session.
TO_LAYOUT_3 = (
    *TO_LAYOUT_4,
    "UPDATE seen SET key = hash(event_id)",
    "UPDATE queries SET session_key = hash(session_id)",
    *(f"UPDATE {table} SET key = hash(impression_id)" for table in ("impressions", "clicks", "pending")),
    *(f"ALTER TABLE {table} DROP COLUMN session_id" for table in ("clicks", "pending", "quarantine")),
    "UPDATE quarantine SET digest = 'before'",
    "UPDATE state SET layout = 3",
)
# Layout 2 had deltas for every list and no roll-ups.
TO_LAYOUT_2 = (
    *TO_LAYOUT_3,
    "INSERT INTO window_deltas SELECT day, query_norm, item_norm, position, 1, 0 FROM window_cells WHERE impressions = 1",
    "DROP VIEW window_cells",
    "DROP VIEW standing_lists",
    "DROP TABLE folds",
    "ALTER TABLE impressions DROP COLUMN length",
    "UPDATE state SET layout = 2",
)


EARLIER = {2: TO_LAYOUT_2, 3: TO_LAYOUT_3, 4: TO_LAYOUT_4}


@pytest.fixture(params=EARLIER)
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A file of an earlier layout."""
    shard = Shard.open(tmp_path / "old.duckdb", RULES)
    feed(shard, LOG)
    shard.close()
    with duckdb.connect(str(tmp_path / "old.duckdb")) as con:
        for sql in EARLIER[request.param]:
            con.execute(sql)
    return tmp_path / "old.duckdb"


def test_a_file_of_an_earlier_layout_is_upgraded_and_goes_on_counting(path: Path, tmp_path: Path) -> None:
    old, new = Shard.open(path, RULES), Shard.open(tmp_path / "new.duckdb", RULES)
    feed(new, LOG)
    for more in ([], MORE):
        for shard in (old, new):
            feed(shard, more, start=len(LOG))
        for as_of in (day(START + 86_400), day(START + 2 * 86_400)):
            assert rows(old.windows(as_of)) == rows(new.windows(as_of)) != []
        assert old.totals() == new.totals()
    old.close()
    new.close()
    Shard.open(path, RULES).close()


def test_opening_it_for_reading_only_does_not_upgrade_it(path: Path) -> None:
    with pytest.raises(StoreError, match=r"old\.duckdb has layout [234], this version reads 5: start a worker on it once"):
        Shard.open(path, RULES, read_only=True)


def test_an_older_or_newer_layout_is_refused(path: Path) -> None:
    for layout in (1, 6):
        with duckdb.connect(str(path)) as con:
            con.execute("UPDATE state SET layout = ?", [layout])
        with pytest.raises(StoreError, match=f"layout {layout}, this version reads 5: replay its topic"):
            Shard.open(path, RULES)
