"""Recent rows: what a shard accepted last, in memory, because new events mostly refer to it.

A click refers to a list shown a moment ago, a duplicate to an event just seen, a query to the one before it in its session. What
is not found here is looked up in the shard's file, so the limits decide speed and change no count. Deferred writes and the open
transaction are included: when a transaction fails, all of this is dropped and loaded from the file again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import accumulate

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting.caps.repeats import CapState
from streams.counting.clicks import Candidate
from streams.counting.connection import ShardConnection
from streams.counting.key_index import KeyArray, KeySet
from streams.counting.pending_clicks import PendingInFile
from streams.counting.quarantine import QuarantineKeys, load_quarantine_keys
from streams.counting.rollups import Rollups, read_rollups
from streams.events.line_spans import Int64s
from streams.events.rules import CountingRules
from streams.events.time_ranges import RECENT_US

MAX_EVENTS, MAX_LISTS, MAX_CLICKED, MAX_QUERIES = 65_536, 65_536, 32_768, 131_072
"""Rows kept of each kind, 30 MB in all: half an hour of queries for a shard with 150 events a second of event time."""
RUN_ROWS = 16_384
"""Small runs are merged up to this size."""
RUNS_TO_MERGE = 4
"""So many runs of about one size are merged at once. To search one run more costs a tenth of merging two."""
FEW_ROWS = 8
"""Up to so many rows are copied one by one, 1 to 3 us each; one call for several rows takes 20 to 50 us at least."""
BEFORE_ALL = -(2**62)
"""Before every event time."""
NO_BATCH = 2**62
"""After every batch."""

LOAD_QUERIES = """
SELECT session_key, session_id, ts_us, event_id, query_norm FROM queries
WHERE source = 'user' AND ts_us >= $since ORDER BY ts_us DESC LIMIT $limit
"""
LOAD_PENDING = "SELECT key, ts_us FROM pending"
LOAD_DIRTY = "SELECT day FROM days WHERE dirty"


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows sorted by key: the row of keys[i] is batch[rows[i]]. `last` is the highest order among them."""

    keys: KeyArray
    rows: Int64s
    batch: pa.RecordBatch
    last: int

    def find(self, wanted: KeyArray) -> tuple[Int64s, Int64s]:
        """Return for each row found the index of its key in `wanted`, which is sorted, and its index in `batch`."""
        low = self.keys.searchsorted(wanted)
        hits = (self.keys.take(low, mode="clip") == wanted).nonzero()[0]
        low = low[hits]
        number = self.keys.searchsorted(wanted[hits], side="right") - low
        if (number == 1).all():
            return hits, self.rows[low]
        ends = number.cumsum()
        return hits.repeat(number), self.rows[np.arange(ends[-1]) + (low + number - ends).repeat(number)]

    def take(self, rows: Int64s) -> list[pa.RecordBatch]:
        """Return rows of `batch`, as one batch or several."""
        if len(rows) > FEW_ROWS:
            return [self.batch.take(pa.array(rows))]
        return [self.batch.slice(row, 1) for row in rows.tolist()]


@dataclass(slots=True)
class RecentRows:
    """The rows added last, by key. A row's order is a number that mostly grows, such as its time or its batch.

    As long as the caller adds every row, all rows with an order of at least `complete_from` are here.
    """

    limit: int
    complete_from: int = BEFORE_ALL
    _runs: deque[_Run] = field(default_factory=deque)

    def add(self, keys: KeyArray, table: pa.Table, last: int) -> None:
        """Add rows, whose highest order is `last`, and drop the oldest runs beyond the limit."""
        if not len(keys):
            return
        self._runs.append(_make_run(keys, table, last))
        while runs := self._find_mergeable():
            for _ in runs:
                self._runs.pop()
            self._runs.append(_merge(runs))
        while len(self._runs) > 1 and sum(len(run.keys) for run in self._runs) > self.limit:
            self.complete_from = max(self.complete_from, self._runs.popleft().last + 1)

    def find(self, keys: KeyArray, since: int = BEFORE_ALL) -> tuple[Int64s, pa.Table | None]:
        """Return for each row found the index of its key in `keys`, and the rows as a table of one chunk (None: no rows).

        Different texts may share a key, so compare them. Rows with an order below `since` may be left out.
        """
        order = keys.argsort()
        wanted = keys[order]
        places, batches = [], []
        for run in self._runs:
            if run.last < since:
                continue
            hits, rows = run.find(wanted)
            if len(rows):
                places.append(hits)
                batches += run.take(rows)
        if not batches:
            return np.zeros(0, np.int64), None
        return order[np.concatenate(places)], pa.Table.from_batches([pa.concat_batches(batches)])

    def _find_mergeable(self) -> list[_Run]:
        """Return the last runs that should be merged now, in order."""
        runs: list[_Run] = []
        rows = 0
        for run in reversed(self._runs):
            if len(run.keys) >= 2 * len(self._runs[-1].keys) or rows + len(run.keys) > RUN_ROWS:
                break
            runs.append(run)
            rows += len(run.keys)
        is_due = len(runs) >= RUNS_TO_MERGE or (len(runs) > 1 and 2 * rows > RUN_ROWS)
        return runs[::-1] if is_due else []

    def clear(self, complete_from: int) -> None:
        """Drop every row; those with an order of at least `complete_from` will be added again."""
        self._runs.clear()
        self.complete_from = complete_from


@dataclass(slots=True)
class RecentState:
    """What one shard keeps in memory between batches, beside its keys.

    By event key: `events` (event_id, ts_us). By impression key: `lists` (`streams.counting.matching.COLUMNS`) and `clicked`
    (impression_id and position of clicks that count). By session key: `queries` (of source user). `queries` are ordered by time,
    the others by batch.

    `pending_keys` has at least the impression keys of all pending clicks, `first_pending_us` is at most the earliest one's time,
    `pending_in_file` has those of the file. `dirty_days` and `rollups` equal the tables `days` and `folds`. Batches with a number
    of at least `unwritten_from` are not in the file yet.
    """

    queries: RecentRows
    pending_keys: KeySet
    first_pending_us: int
    quarantine_keys: QuarantineKeys
    dirty_days: set[date]
    rollups: Rollups
    batch: int = 0
    unwritten_from: int = NO_BATCH
    pending_in_file: PendingInFile = field(default_factory=PendingInFile)
    events: RecentRows = field(default_factory=lambda: RecentRows(MAX_EVENTS))
    lists: RecentRows = field(default_factory=lambda: RecentRows(MAX_LISTS))
    clicked: RecentRows = field(default_factory=lambda: RecentRows(MAX_CLICKED))
    caps: CapState = field(default_factory=CapState)

    def begin_batch(self) -> None:
        """Give the next batch its number; it is not written yet."""
        self.batch += 1
        self.unwritten_from = min(self.unwritten_from, self.batch)

    def mark_written(self) -> None:
        """Record that the file has all batches."""
        self.unwritten_from = NO_BATCH
        self.pending_in_file.invalidate()

    def make_unwritten_visible(self, connection: ShardConnection, *kinds: RecentRows) -> None:
        """Run the deferred writes, unless memory has every row of these kinds that is not written yet."""
        if any(rows.complete_from > self.unwritten_from for rows in kinds):
            connection.begin()

    def track_lists(self, lists: pa.Table) -> None:
        """Add new lists, from now on with all positions that are clicked on them."""
        table = lists.append_column("batch", pa.array(np.full(len(lists), self.batch)))
        self.lists.add(lists["impression_key"].to_numpy(), table, self.batch)

    def add_pending(self, clicks: Sequence[Candidate]) -> None:
        """Record that these clicks are pending."""
        if clicks:
            self.pending_keys.add(np.array([click.key for click in clicks], np.uint64))
            self.first_pending_us = min(self.first_pending_us, *(click.ts_us for click in clicks))

    def drop_lists(self) -> None:
        """Drop all lists and clicked positions, because this batch retracts some of them."""
        self.lists.clear(self.batch)
        self.clicked.clear(self.batch)


def load_recent_state(con: duckdb.DuckDBPyConnection, latest_us: int | None, rules: CountingRules) -> RecentState:
    """Load from a shard's file the keys of pending clicks and quarantine, dirty days, roll-ups and the last hours' queries."""
    pending_keys, pending = KeySet(), con.execute(LOAD_PENDING).fetchnumpy()
    pending_keys.add(np.asarray(pending["key"], np.uint64))
    first_us = int(pending["ts_us"].min()) if len(pending["ts_us"]) else -BEFORE_ALL
    dirty = {day for (day,) in con.execute(LOAD_DIRTY).fetchall()}
    return RecentState(
        _load_queries(con, latest_us, rules), pending_keys, first_us, load_quarantine_keys(con), dirty, read_rollups(con)
    )


def _load_queries(con: duckdb.DuckDBPyConnection, latest_us: int | None, rules: CountingRules) -> RecentRows:
    since = BEFORE_ALL if latest_us is None else latest_us - RECENT_US - rules.session_gap_us
    half = max(1, MAX_QUERIES // 2)
    found = con.sql(LOAD_QUERIES, params={"since": since, "limit": half}).to_arrow_table()
    if len(found) == half:
        since = found["ts_us"][-1].as_py() + 1
    rows = RecentRows(MAX_QUERIES, since)
    if len(found):
        rows.add(found["session_key"].to_numpy(), found.drop_columns(["session_key"]), found["ts_us"][0].as_py())
    return rows


def _make_run(keys: KeyArray, table: pa.Table, last: int) -> _Run:
    rows = keys.argsort()
    return _Run(keys[rows], rows, table.combine_chunks().to_batches()[0], last)


def _merge(runs: Sequence[_Run]) -> _Run:
    keys = np.concatenate([run.keys for run in runs])
    starts = accumulate((len(run.keys) for run in runs[:-1]), initial=0)
    rows = np.concatenate([run.rows + start for run, start in zip(runs, starts, strict=True)])
    order = keys.argsort(kind="stable")
    return _Run(keys[order], rows[order], pa.concat_batches([run.batch for run in runs]), max(run.last for run in runs))
