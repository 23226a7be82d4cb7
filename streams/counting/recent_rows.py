"""Recent: what a shard took in last, kept in memory, because that is what new events mostly refer to.

A click refers to a list shown a moment ago, a repeat to an event just seen, a query to the one before it in its session. What is
found here need not be read from the file; what is not found here is looked up there, so the bounds decide speed and no count.
It holds what the open transaction has written too: when a transaction fails it is dropped and begun anew from the file.
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

from streams.counting.clicks import Candidate
from streams.counting.connection import Feeds
from streams.counting.key_index import Keys, KeySet
from streams.counting.pending_clicks import WaitingOnFile
from streams.counting.quarantine import Held, load_held
from streams.counting.rollups import Folds, read_folds
from streams.counting.time_ranges import RECENT_US
from streams.events.line_spans import Int64s
from streams.events.rules import CountingRules

EVENTS, LISTS, CLICKED, QUERIES = 65_536, 65_536, 32_768, 131_072
"""Rows of each kind that are kept, 30 MB in all: half an hour's queries where a shard gets 150 events a second of event time."""
RUN_ROWS = 16_384
"""Small batches are put together up to this size."""
RUNS_ALIKE = 4
"""So many runs of about one size are put together at once. One more to look through costs a tenth of putting two together."""
FEW_ROWS = 8
"""So many rows are cut out of a run one by one: 1 to 3 us each, where a take of several at once begins at 20 to 50 us."""
ALL = -(2**62)
"""Before every event time."""
ALL_WRITTEN = 2**62
"""After every batch."""

LOAD_QUERIES = """
SELECT session_key, session_id, ts_us, event_id, query_norm FROM queries
WHERE source = 'user' AND ts_us >= $since ORDER BY ts_us DESC LIMIT $limit
"""
LOAD_WAITING = "SELECT key, ts_us FROM pending"
LOAD_DIRTY = "SELECT day FROM days WHERE dirty"


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows in the order of `keys`: the one with keys[i] is batch[rows[i]]. `last` is the highest order among them."""

    keys: Keys
    rows: Int64s
    batch: pa.RecordBatch
    last: int

    def find(self, wanted: Keys) -> tuple[Int64s, Int64s]:
        """Return for each row found which of `wanted`, which are sorted, it has, and where it is in `batch`."""
        low = self.keys.searchsorted(wanted)
        hits = (self.keys.take(low, mode="clip") == wanted).nonzero()[0]
        low = low[hits]
        number = self.keys.searchsorted(wanted[hits], side="right") - low
        if (number == 1).all():
            return hits, self.rows[low]
        ends = number.cumsum()
        return hits.repeat(number), self.rows[np.arange(ends[-1]) + (low + number - ends).repeat(number)]

    def take(self, rows: Int64s) -> list[pa.RecordBatch]:
        """Return rows of `batch`, in one piece or in several."""
        if len(rows) > FEW_ROWS:
            return [self.batch.take(pa.array(rows))]
        return [self.batch.slice(row, 1) for row in rows.tolist()]


@dataclass(slots=True)
class RecentRows:
    """The rows added last, found by their keys. `order` is a number that mostly grows (a time, a batch).

    Every row whose order is at least `complete_from` is here, given that the caller adds every row.
    """

    limit: int
    complete_from: int = ALL
    _runs: deque[_Run] = field(default_factory=deque)

    def add(self, keys: Keys, table: pa.Table, last: int) -> None:
        """Add rows, whose highest order is `last`, and forget the oldest ones beyond the limit."""
        if not len(keys):
            return
        self._runs.append(_make_run(keys, table, last))
        while runs := self._find_alike():
            for _ in runs:
                self._runs.pop()
            self._runs.append(_merge(runs))
        while len(self._runs) > 1 and sum(len(run.keys) for run in self._runs) > self.limit:
            self.complete_from = max(self.complete_from, self._runs.popleft().last + 1)

    def find(self, keys: Keys, since: int = ALL) -> tuple[Int64s, pa.Table | None]:
        """Return for each row found which of `keys` it has, and the rows, in one chunk.

        Equal keys do not make equal texts: compare them. Rows whose order is below `since` may be left out.
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

    def _find_alike(self) -> list[_Run]:
        """Return the last runs, in order, if it is time to put them together."""
        runs: list[_Run] = []
        rows = 0
        for run in reversed(self._runs):
            if len(run.keys) >= 2 * len(self._runs[-1].keys) or rows + len(run.keys) > RUN_ROWS:
                break
            runs.append(run)
            rows += len(run.keys)
        is_time = len(runs) >= RUNS_ALIKE or (len(runs) > 1 and 2 * rows > RUN_ROWS)
        return runs[::-1] if is_time else []

    def clear(self, complete_from: int) -> None:
        """Forget every row; those from `complete_from` on will be added."""
        self._runs.clear()
        self.complete_from = complete_from


@dataclass(slots=True)
class Recent:
    """What one shard keeps in memory between batches beside its keys.

    `events` (event_id, ts_us) by event key, `lists` (`streams.counting.matching.COLUMNS`) and `clicked` (impression_id, position:
    cells that count) by impression key, both ordered by `batch`, `queries` (user queries) by session key, ordered by time.
    `waiting` holds at least the impression keys of the clicks in `pending`, `waiting_us` is not after the earliest of them,
    `waiting_on_file` are those of the file. `dirty` are the days that wait for their export, `folds` are as in the table.
    The batches from `unwritten_from` on are not in the file yet.
    """

    queries: RecentRows
    waiting: KeySet
    waiting_us: int
    quarantined: Held
    dirty: set[date]
    folds: Folds
    batch: int = 0
    unwritten_from: int = ALL_WRITTEN
    waiting_on_file: WaitingOnFile = field(default_factory=WaitingOnFile)
    events: RecentRows = field(default_factory=lambda: RecentRows(EVENTS))
    lists: RecentRows = field(default_factory=lambda: RecentRows(LISTS))
    clicked: RecentRows = field(default_factory=lambda: RecentRows(CLICKED))

    def begin_batch(self) -> None:
        """Number a batch, which is not written yet."""
        self.batch += 1
        self.unwritten_from = min(self.unwritten_from, self.batch)

    def note_written(self) -> None:
        """Note that the file has all batches."""
        self.unwritten_from = ALL_WRITTEN
        self.waiting_on_file.forget()

    def show_unwritten(self, feeds: Feeds, *kinds: RecentRows) -> None:
        """Let the file's tables show the batches that are not written, unless memory has all their rows of these kinds."""
        if any(rows.complete_from > self.unwritten_from for rows in kinds):
            feeds.begin()

    def follow_lists(self, lists: pa.Table) -> None:
        """Remember new lists; what is clicked on them from now on is remembered too."""
        table = lists.append_column("batch", pa.array(np.full(len(lists), self.batch)))
        self.lists.add(lists["impression_key"].to_numpy(), table, self.batch)

    def wait(self, clicks: Sequence[Candidate]) -> None:
        """Note that these clicks wait."""
        if clicks:
            self.waiting.add(np.array([click.key for click in clicks], np.uint64))
            self.waiting_us = min(self.waiting_us, *(click.ts_us for click in clicks))

    def forget_lists(self) -> None:
        """Forget lists and what was clicked on them: this batch takes some of it back."""
        self.lists.clear(self.batch)
        self.clicked.clear(self.batch)


def load_recent(con: duckdb.DuckDBPyConnection, latest_us: int | None, rules: CountingRules) -> Recent:
    """Return what is to be known at once of a shard's file: clicks that wait, days to export, the last hours' queries."""
    waiting, pending = KeySet(), con.execute(LOAD_WAITING).fetchnumpy()
    waiting.add(np.asarray(pending["key"], np.uint64))
    first_us = int(pending["ts_us"].min()) if len(pending["ts_us"]) else -ALL
    dirty = {day for (day,) in con.execute(LOAD_DIRTY).fetchall()}
    return Recent(_load_queries(con, latest_us, rules), waiting, first_us, load_held(con), dirty, read_folds(con))


def _load_queries(con: duckdb.DuckDBPyConnection, latest_us: int | None, rules: CountingRules) -> RecentRows:
    since = ALL if latest_us is None else latest_us - RECENT_US - rules.session_gap_us
    half = max(1, QUERIES // 2)
    found = con.sql(LOAD_QUERIES, params={"since": since, "limit": half}).to_arrow_table()
    if len(found) == half:
        since = found["ts_us"][-1].as_py() + 1
    rows = RecentRows(QUERIES, since)
    if len(found):
        rows.add(found["session_key"].to_numpy(), found.drop_columns(["session_key"]), found["ts_us"][0].as_py())
    return rows


def _make_run(keys: Keys, table: pa.Table, last: int) -> _Run:
    rows = keys.argsort()
    return _Run(keys[rows], rows, table.combine_chunks().to_batches()[0], last)


def _merge(runs: Sequence[_Run]) -> _Run:
    keys = np.concatenate([run.keys for run in runs])
    starts = accumulate((len(run.keys) for run in runs[:-1]), initial=0)
    rows = np.concatenate([run.rows + start for run, start in zip(runs, starts, strict=True)])
    order = keys.argsort(kind="stable")
    return _Run(keys[order], rows[order], pa.concat_batches([run.batch for run in runs]), max(run.last for run in runs))
