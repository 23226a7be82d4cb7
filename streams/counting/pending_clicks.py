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
import pyarrow.compute as pc

from streams.counting.clicks import SCHEMA, Candidate, to_table
from streams.counting.connection import ShardConnection

FEW = 2_000
"""Pending clicks that are kept in memory, usually 2 MB at most; when there are more, each look-up reads the file."""

CANDIDATE = "rowid, -1, hash(event_id), ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line"
READ_FEW = f"SELECT {CANDIDATE} FROM pending LIMIT {FEW + 1}"
FIND_PENDING = f"SELECT {CANDIDATE} FROM pending WHERE impression_id IN (FROM wanted)"
# The rowids are still valid: no row of the file moves between two commits.
DROP_PENDING = "DELETE FROM pending WHERE rowid IN (SELECT row FROM taken_rows)"
ADD_PENDING = """
INSERT INTO pending SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line FROM new_pending
"""
TAKE_ORPHANS = f"DELETE FROM pending WHERE ts_us < $before RETURNING {CANDIDATE}"
DEFERRED = pa.schema([("event_key", pa.uint64()), *SCHEMA])
COUNT_PENDING = "SELECT count(*), min(ts_us) FROM pending"


@dataclass(slots=True)
class PendingInFile:
    """The pending clicks of the file by impression_id, without those taken; `_clicks` is None until they are read again."""

    _clicks: dict[str, list[Candidate]] | None = None
    _are_many: bool = False

    def invalidate(self) -> None:
        """Read the clicks again before the next look-up, because the file has changed."""
        self._clicks, self._are_many = None, False

    def take(self, connection: ShardConnection, impression_ids: Sequence[str]) -> list[Candidate]:
        """Return the clicks of the file that wait for these impressions, in the order of the file; each click only once."""
        if self._clicks is None and not self._are_many and not connection.in_transaction:
            self._read(connection)
        if self._clicks is None or connection.in_transaction:
            return _find(connection, impression_ids)
        return sorted(click for name in set(impression_ids) for click in self._clicks.pop(name, ()))

    def _read(self, connection: ShardConnection) -> None:
        found = connection.look_up(READ_FEW).fetchall()
        self._are_many = len(found) > FEW
        if self._are_many:
            return
        self._clicks, taken = defaultdict(list), _find_taken_rows(connection)
        for row in found:
            if row[0] not in taken:
                click = Candidate(*row)
                self._clicks[click.impression_id].append(click)


def take_pending(connection: ShardConnection, impression_ids: Sequence[str], in_file: PendingInFile) -> list[Candidate]:
    """Remove the clicks that wait for these impressions from the pending ones; return them in the order of arrival."""
    found = in_file.take(connection, impression_ids)
    if found:
        connection.defer(DROP_PENDING, "taken_rows", pa.table({"row": pa.array([click.row for click in found], pa.int64())}))
    return found + _take_deferred(connection, impression_ids)


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


def _find(connection: ShardConnection, impression_ids: Sequence[str]) -> list[Candidate]:
    """Look the clicks up in the file, as the transaction sees it if one is open."""
    taken, wanted = _find_taken_rows(connection), pa.table({"impression_id": pa.array(impression_ids, pa.string())})
    return sorted(Candidate(*row) for row in connection.look_up(FIND_PENDING, wanted=wanted).fetchall() if row[0] not in taken)


def _find_taken_rows(connection: ShardConnection) -> set[int]:
    """Return the rowids of clicks that were taken and whose deletion is still deferred."""
    return {row for table in connection.find_deferred(DROP_PENDING) for row in table["row"].to_pylist()}


def _take_deferred(connection: ShardConnection, impression_ids: Sequence[str]) -> list[Candidate]:
    """Take the clicks whose insertion is still deferred."""
    tables = connection.find_deferred(ADD_PENDING)
    if not tables:
        return []
    pending = pa.concat_tables(tables).combine_chunks()
    chosen = pc.is_in(pending["impression_id"], value_set=pa.array(impression_ids, pa.string())).to_numpy()
    if not chosen.any():
        return []
    tables[:] = [pending.filter(pa.array(~chosen))]
    columns = pending.take(pa.array(chosen.nonzero()[0])).columns
    return [Candidate(0, -1, *row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]
