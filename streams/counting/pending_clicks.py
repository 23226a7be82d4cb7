"""Clicks that wait for their list: some in the file, some to be written yet, and what is taken of both when a list comes.

Nearly every batch has a list or two that a click came before, and to ask the file for them costs more than to read all that wait.
So where few do, those of the file are read once after each write, and found in memory from then on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting.clicks import SCHEMA, Candidate, to_table
from streams.counting.connection import Feeds

FEW = 2_000
"""Waiting clicks that are kept in memory, 2 MB at most of common ones; where more wait, the file is asked each time."""

CANDIDATE = "rowid, -1, hash(event_id), ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line"
READ_FEW = f"SELECT {CANDIDATE} FROM pending LIMIT {FEW + 1}"
FIND_WAITING = f"SELECT {CANDIDATE} FROM pending WHERE impression_id IN (FROM wanted)"
# What was found is still there: no row of the file moves between two commits.
DROP_WAITING = "DELETE FROM pending WHERE rowid IN (SELECT row FROM taken_rows)"
WAIT = """
INSERT INTO pending SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line FROM waiting
"""
TAKE_ORPHANS = f"DELETE FROM pending WHERE ts_us < $before RETURNING {CANDIDATE}"
WAITING = pa.schema([("event_key", pa.uint64()), *SCHEMA])
PENDING = "SELECT count(*), min(ts_us) FROM pending"


@dataclass(slots=True)
class WaitingOnFile:
    """The clicks that wait in the file, by impression_id, less those that were taken; None where they are to be read anew."""

    _clicks: dict[str, list[Candidate]] | None = None
    _are_many: bool = False

    def forget(self) -> None:
        """Note that the file has changed."""
        self._clicks, self._are_many = None, False

    def take(self, feeds: Feeds, impression_ids: Sequence[str]) -> list[Candidate]:
        """Return the clicks that wait for these impressions, in the order of the file, once."""
        if self._clicks is None and not self._are_many and not feeds.in_transaction:
            self._read(feeds)
        if self._clicks is None or feeds.in_transaction:
            return _find(feeds, impression_ids)
        return sorted(click for name in set(impression_ids) for click in self._clicks.pop(name, ()))

    def _read(self, feeds: Feeds) -> None:
        found = feeds.look_up(READ_FEW).fetchall()
        self._are_many = len(found) > FEW
        if self._are_many:
            return
        self._clicks, taken = defaultdict(list), _taken_rows(feeds)
        for row in found:
            if row[0] not in taken:
                click = Candidate(*row)
                self._clicks[click.impression_id].append(click)


def take_waiting(feeds: Feeds, impression_ids: Sequence[str], on_file: WaitingOnFile) -> list[Candidate]:
    """Take the clicks that wait for these impressions out of waiting, and return them in the order in which they came."""
    found = on_file.take(feeds, impression_ids)
    if found:
        feeds.add(DROP_WAITING, "taken_rows", pa.table({"row": pa.array([click.row for click in found], pa.int64())}))
    return found + _take_added(feeds, impression_ids)


def wait(feeds: Feeds, waiting: Sequence[Candidate]) -> None:
    """Let clicks wait for their impressions."""
    if waiting:
        feeds.add(WAIT, "waiting", to_table([click[2:] for click in waiting], WAITING))


def take_orphans(feeds: Feeds, before_us: int) -> list[Candidate]:
    """Take the clicks with ts < before_us out of waiting, and return them in the order of the log."""
    found = [Candidate(*row) for row in feeds.execute(TAKE_ORPHANS, {"before": before_us}).fetchall()]
    return sorted(found, key=lambda click: (click.log_offset, click.line))


def pending_state(con: duckdb.DuckDBPyConnection) -> tuple[int, int | None]:
    """Return how many clicks wait and the earliest one's time."""
    number, first_us = con.execute(PENDING).fetchall()[0]
    return int(number), first_us


def _find(feeds: Feeds, impression_ids: Sequence[str]) -> list[Candidate]:
    """Ask the file, as the transaction sees it where one is open."""
    taken, wanted = _taken_rows(feeds), pa.table({"impression_id": pa.array(impression_ids, pa.string())})
    return sorted(Candidate(*row) for row in feeds.look_up(FIND_WAITING, wanted=wanted).fetchall() if row[0] not in taken)


def _taken_rows(feeds: Feeds) -> set[int]:
    """Return the rows of the file that were taken, of which the file does not know yet."""
    return {row for table in feeds.find_added(DROP_WAITING) for row in table["row"].to_pylist()}


def _take_added(feeds: Feeds, impression_ids: Sequence[str]) -> list[Candidate]:
    """Take those that are to be written yet."""
    tables = feeds.find_added(WAIT)
    if not tables:
        return []
    waiting = pa.concat_tables(tables).combine_chunks()
    chosen = pc.is_in(waiting["impression_id"], value_set=pa.array(impression_ids, pa.string())).to_numpy()
    if not chosen.any():
        return []
    tables[:] = [waiting.filter(pa.array(~chosen))]
    columns = waiting.take(pa.array(chosen.nonzero()[0])).columns
    return [Candidate(0, -1, *row) for row in zip(*(column.to_pylist() for column in columns), strict=True)]
