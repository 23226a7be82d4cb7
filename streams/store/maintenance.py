"""Maintenance keeps a shard small and fast, between batches, in slices so short that counting never waits a second.

There are three kinds: a checkpoint when the write-ahead log has grown although large commits go into the file (a reader can delay
those), so that a restart has little to replay; expiry of rows older than the retention; compaction of days with many deltas.
Event time and the file decide what is due, never the clock, and none of it changes a count.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Literal

import duckdb

from streams.counting import retention, rollups
from streams.events.rules import DAY_US, CountingRules
from streams.store import compaction
from streams.store.compaction import Deltas

log = logging.getLogger(__name__)

WAL_BYTES = 32 * 2**20
"""Size of the write-ahead log at which a checkpoint is due: about 80,000 events, 0.1 s to write, 0.2 s to replay after a kill."""

LOOK_EVENTS = 80_000
"""A shard's tables are examined after so many events, when a day begins and when one is over."""
LOOK_DAYS = 2
LOOK_SHARE = 16
"""A table's days are examined again when another day is over, or when the table has gained the rows for so many days' compaction
and this fraction of its own rows, since that reads a column."""

Kind = Literal["checkpoint", "expiry", "look", "compaction"]


@dataclass(frozen=True, slots=True)
class MaintenanceSlice:
    """One slice of maintenance: how long the shard was busy with it, and the number of rows before and after.

    `day` is the day that was compacted or deleted. A checkpoint has no table and no rows; a look, which finds the days of a table
    to compact, has no rows.
    """

    kind: Kind
    seconds: float = 0.0
    table: str = ""
    day: date | None = None
    rows_before: int = 0
    rows_after: int = 0


@dataclass(frozen=True, slots=True)
class MaintenanceTotals:
    """The sum of all slices of one kind since the shard was opened."""

    slices: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0
    rows_before: int = 0
    rows_after: int = 0
    last_day: date | None = None

    def add(self, one: MaintenanceSlice) -> MaintenanceTotals:
        """Return the totals with one slice more."""
        return MaintenanceTotals(
            self.slices + 1,
            self.seconds + one.seconds,
            max(self.longest_s, one.seconds),
            self.rows_before + one.rows_before,
            self.rows_after + one.rows_after,
            one.day or self.last_day,
        )


class Maintenance:
    """The maintenance of one shard. Call it from the thread that applies; only `totals` is safe from any thread."""

    def __init__(
        self,
        con: duckdb.DuckDBPyConnection,
        path: Path,
        transaction: Callable[[], AbstractContextManager[None]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._con = con
        self._shard = path.stem
        self._wal = path.with_name(f"{path.name}.wal")
        self._transaction = transaction
        self._clock = clock
        self._totals: dict[str, MaintenanceTotals] = {}
        self._slices: Iterator[MaintenanceSlice] | None = None
        self._last_look: tuple[int, date, int] | None = None
        self._expired_us = 0
        self._sizes_at_last_look: dict[str, tuple[date | None, int]] = {}

    def run(
        self, latest_us: int | None, events: int, rules: CountingRules, budget_s: float, urgent_only: bool = False
    ) -> list[MaintenanceSlice]:
        """Do what is due, slice by slice, until `budget_s` seconds are spent, one slice at least; return the slices.

        `latest_us` is the shard's latest event time, `events` the number of events that it has applied. A slice takes up to 0.2
        s, so a call may take that much longer. Only the checkpoint is urgent, because a restart would wait for it. Call this
        between batches, outside a transaction.
        """
        done: list[MaintenanceSlice] = []
        began = self._clock()
        while latest_us is not None and (not done or self._clock() - began < budget_s):
            started = self._clock()
            one = self._run_next(latest_us, events, rules, urgent_only)
            if one is None:
                break
            one = replace(one, seconds=self._clock() - started)
            self._totals = {**self._totals, one.kind: self._totals.get(one.kind, MaintenanceTotals()).add(one)}
            done.append(one)
        return done

    def totals(self) -> Mapping[str, MaintenanceTotals]:
        """Return the totals since the shard was opened, by kind."""
        return self._totals

    def _run_next(self, latest_us: int, events: int, rules: CountingRules, urgent_only: bool) -> MaintenanceSlice | None:
        if self._wal_bytes() >= WAL_BYTES:
            return self._checkpoint()
        if urgent_only:
            return None
        if self._slices is None:
            look = latest_us // DAY_US, compaction.find_over(latest_us), events // LOOK_EVENTS
            if self._last_look == look:
                return None
            self._last_look = look
            self._slices = self._look(latest_us, rules)
        try:
            one = next(self._slices, None)
        except BaseException:
            self._slices = self._last_look = None
            raise
        if one is None:
            self._slices = None
        return one

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    def _checkpoint(self) -> MaintenanceSlice | None:
        """Write the log into the file; None when a reader still needs rows that an update replaced, so that it is tried again."""
        wal_bytes = self._wal_bytes()
        with self._transaction():
            pass  # a checkpoint moves rows, and deferred writes may refer to them by rowid
        try:
            self._con.execute("CHECKPOINT")
        except duckdb.TransactionException:
            log.debug("event=checkpoint_waits shard=%s wal_bytes=%d", self._shard, wal_bytes)
            return None
        log.debug("event=checkpoint shard=%s wal_bytes=%d", self._shard, wal_bytes)
        return MaintenanceSlice("checkpoint")

    def _look(self, latest_us: int, rules: CountingRules) -> Iterator[MaintenanceSlice]:
        """Find what is due and do it, a slice for each call of `next`."""
        if rules.retention_us:
            yield from self._expire(retention.find_cutoff(self._con, latest_us, rules))
        over = compaction.find_over(latest_us)
        for deltas in compaction.DELTAS:
            rows = compaction.count_rows(self._con, deltas)
            last_over, last_rows = self._sizes_at_last_look.get(deltas.table, (None, 0))
            if over == last_over and rows - last_rows < max(LOOK_DAYS * rules.compact_rows, rows // LOOK_SHARE):
                continue
            grown = compaction.find_grown_days(self._con, deltas, rules.compact_rows, over)
            yield MaintenanceSlice("look", table=deltas.table)
            for day, held in grown:
                yield from self._compact(deltas, day, held)
            self._sizes_at_last_look[deltas.table] = over, compaction.count_rows(self._con, deltas)

    def _expire(self, cutoff_us: int) -> Iterator[MaintenanceSlice]:
        """Delete the days before the cutoff, after their lists are rolled up."""
        if cutoff_us <= self._expired_us:
            return
        for day in rollups.find_not_rolled_up(self._con, retention.to_day(cutoff_us)):
            yield from self._compact(compaction.WINDOWS, day, compaction.count_day(self._con, compaction.WINDOWS, day))
        for table, day in retention.find_expired(self._con, cutoff_us):
            with self._transaction():
                rows = retention.expire(self._con, table, day)
            log.info("event=expired shard=%s table=%s day=%s rows=%d", self._shard, table, day, rows)
            yield MaintenanceSlice("expiry", table=table, day=day, rows_before=rows)
        self._expired_us = cutoff_us

    def _compact(self, deltas: Deltas, day: date, held: int) -> Iterator[MaintenanceSlice]:
        names = self._shard, deltas.table, day
        log.info("event=compaction_began shard=%s table=%s day=%s rows=%d", *names, held)
        read = left = 0
        for one in compaction.slice_day(self._con, deltas, day, held):
            with self._transaction():
                before, after = compaction.compact_slice(self._con, deltas, one)
                read, left = read + before, left + after
                compaction.record_compacted(self._con, deltas, day, left)
            yield MaintenanceSlice("compaction", table=deltas.table, day=day, rows_before=before, rows_after=after)
        log.info("event=day_compacted shard=%s table=%s day=%s rows_before=%d rows_after=%d", *names, read, left)
