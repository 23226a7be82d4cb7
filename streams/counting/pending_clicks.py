"""Pending clicks, which wait for their impression in the shard's file or in deferred writes until it arrives or they expire.

Nearly every batch has a list or two that a click arrived before, and to look these up in the file costs more than to read all
pending clicks. So when there are few, those of the file are read once after each write and found in memory from then on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from streams.counting.clicks import SCHEMA, WANTED, Candidate, ListId, is_among, to_table
from streams.counting.connection import ShardConnection
from streams.counting.key_index import key_sql

FEW = 2_000
"""Pending clicks that are kept in memory, usually 2 MB at most; when there are more, each look-up reads the file."""

CANDIDATE = f"""
    rowid, -1, {key_sql("event_id")}, ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, session_id
"""
READ_FEW = f"SELECT {CANDIDATE} FROM pending LIMIT {FEW + 1}"
FIND_PENDING = f"""
SELECT {CANDIDATE} FROM pending WHERE (key, impression_id) IN (SELECT (impression_key, impression_id) FROM wanted)
"""
# The rowids are still valid: no row of the file moves between two commits.
DROP_PENDING = "DELETE FROM pending WHERE rowid IN (SELECT row FROM taken_rows)"
ADD_PENDING = """
INSERT INTO pending
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, session_id FROM new_pending
"""
TAKE_ORPHANS = f"DELETE FROM pending WHERE ts_us < $before RETURNING {CANDIDATE}"
DEFERRED = pa.schema([("event_key", pa.uint64()), *SCHEMA])
COUNT_PENDING = "SELECT count(*), min(ts_us) FROM pending"


@dataclass(slots=True)
class PendingInFile:
    """The pending clicks of the file by list, without those taken; `_clicks` is None until they are read again."""

    _clicks: dict[ListId, list[Candidate]] | None = None
    _are_many: bool = False

    def invalidate(self) -> None:
        """Read the clicks again before the next look-up, because the file has changed."""
        self._clicks, self._are_many = None, False

    def take(self, connection: ShardConnection, lists: pa.Table) -> list[Candidate]:
        """Return the clicks of the file that wait for these lists (WANTED), in the order of the file; each click only once."""
        if self._clicks is None and not self._are_many and not connection.in_transaction:
            self._read(connection)
        if self._clicks is None or connection.in_transaction:
            return _find(connection, lists)
        names = set(zip(*(lists[name].to_pylist() for name in WANTED), strict=True))
        return sorted(click for name in names for click in self._clicks.pop(name, ()))

    def _read(self, connection: ShardConnection) -> None:
        found = connection.look_up(READ_FEW).fetchall()
        self._are_many = len(found) > FEW
        if self._are_many:
            return
        self._clicks, taken = defaultdict(list), _find_taken_rows(connection)
        for row in found:
            if row[0] not in taken:
                click = Candidate(*row)
                self._clicks[click.list_id].append(click)


def take_pending(connection: ShardConnection, lists: pa.Table, in_file: PendingInFile) -> list[Candidate]:
    """Remove the clicks that wait for these lists (WANTED) from the pending ones; return them in the order of arrival."""
    found = in_file.take(connection, lists)
    if found:
        connection.defer(DROP_PENDING, "taken_rows", pa.table({"row": pa.array([click.row for click in found], pa.int64())}))
    return found + _take_deferred(connection, lists)


def add_pending(connection: ShardConnection, clicks: Sequence[Candidate]) -> None:
    """Let clicks wait for their impressions."""
    if clicks:
        connection.defer(ADD_PENDING, "new_pending", to_table([click[2:] for click in clicks], DEFERRED))


def take_orphans(connection: ShardConnection, before_us: int) -> list[Candidate]:
    """Remove the pending clicks with ts < before_us, and return them in log order."""
    found = [Candidate(*row) for row in connection.execute(TAKE_ORPHANS, {"before": before_us}).fetchall()]
    return sorted(found, key=lambda click: (click.log_offset, click.line))


def pending_state(con: duckdb.DuckDBPyConnection) -> tuple[int, int | None]:
    """Return the number of pending clicks and the time of the earliest one."""
    number, first_us = con.execute(COUNT_PENDING).fetchall()[0]
    return int(number), first_us


def _find(connection: ShardConnection, wanted: pa.Table) -> list[Candidate]:
    """Look the clicks up in the file, as the transaction sees it if one is open."""
    taken = _find_taken_rows(connection)
    return sorted(Candidate(*row) for row in connection.look_up(FIND_PENDING, wanted=wanted).fetchall() if row[0] not in taken)


def _find_taken_rows(connection: ShardConnection) -> set[int]:
    """Return the rowids of clicks that were taken and whose deletion is still deferred."""
    return {row for table in connection.find_deferred(DROP_PENDING) for row in table["row"].to_pylist()}


def _take_deferred(connection: ShardConnection, lists: pa.Table) -> list[Candidate]:
    """Take the clicks whose insertion is still deferred."""
    tables = connection.find_deferred(ADD_PENDING)
    if not tables:
        return []
    pending = pa.concat_tables(tables).combine_chunks()
    chosen = is_among(pending["key"], pending["impression_id"], lists).to_numpy()
    if not chosen.any():
        return []
    tables[:] = [pending.filter(pa.array(~chosen))]
    columns = pending.take(pa.array(chosen.nonzero()[0])).columns
    return [Candidate(0, -1, *row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]
