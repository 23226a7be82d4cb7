"""Upkeep: what keeps a shard small and quick, done between batches in slices short enough that counting never waits a second.

Three kinds: a checkpoint where the write-ahead
log has grown though large commits go into the file (a reader can hold that up), so that a restart has little to replay; expiry
of what the retention no longer needs; compaction of days whose deltas have piled up. What is due is decided by event time and
by what is in the file, never by the clock, and none of it changes a count.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from threading import Lock
from typing import Literal

import duckdb

from streams.counting import retention, rollups
from streams.events.rules import DAY_US, CountingRules
from streams.store import compaction
from streams.store.compaction import Deltas

log = logging.getLogger(__name__)

WAL_BYTES = 32 * 2**20
"""Write-ahead log at which a checkpoint is due: about 80,000 events, 0.1 s to write, 0.2 s to replay after a kill."""

LOOK_EVENTS = 80_000
"""A shard's tables are looked at after so many events, when a day begins and when one is over."""
LOOK_DAYS = 2
LOOK_SHARE = 16
"""A table's days are looked at again when another one is over, or it gained the rows of so many days' compaction and this share
of its own: looking reads a column."""

Kind = Literal["checkpoint", "expiry", "look", "compaction"]


@dataclass(frozen=True, slots=True)
class Tended:
    """One slice of upkeep: how long it held the shard, and the rows that stood there before and after it.

    `day` is the day that was compacted, or the last one that was forgotten. A checkpoint has no table and no rows, a look (which
    days of a table to compact) no rows.
    """

    kind: Kind
    seconds: float = 0.0
    table: str = ""
    day: date | None = None
    rows_before: int = 0
    rows_after: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """All slices of one kind since the shard was opened."""

    slices: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0
    rows_before: int = 0
    rows_after: int = 0
    last_day: date | None = None

    def add(self, one: Tended) -> Account:
        """Return the account with one slice more."""
        return Account(
            self.slices + 1,
            self.seconds + one.seconds,
            max(self.longest_s, one.seconds),
            self.rows_before + one.rows_before,
            self.rows_after + one.rows_after,
            one.day or self.last_day,
        )


class Upkeep:
    """The upkeep of one shard. It belongs to the thread that applies; only `accounts` may be read from another."""

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
        self._accounts: dict[str, Account] = {}
        self._round: Iterator[Tended] | None = None
        self._looked: tuple[int, date, int] | None = None
        self._expired_us = 0
        self._seen: dict[str, tuple[date | None, int]] = {}

    def tend(
        self, latest_us: int | None, events: int, rules: CountingRules, budget_s: float, urgent_only: bool = False
    ) -> list[Tended]:
        """Do what is due, slice by slice, until `budget_s` seconds are spent, one slice at least; return the slices.

        `latest_us` is the shard's latest event time, `events` how many it has taken. A slice takes up to 0.2 s, so a call may
        take that much longer. Urgent is the checkpoint, which a restart would wait for. To be called between batches, outside
        a transaction.
        """
        done: list[Tended] = []
        began = self._clock()
        while latest_us is not None and (not done or self._clock() - began < budget_s):
            started = self._clock()
            one = self._next(latest_us, events, rules, urgent_only)
            if one is None:
                break
            one = replace(one, seconds=self._clock() - started)
            self._accounts = {**self._accounts, one.kind: self._accounts.get(one.kind, Account()).add(one)}
            done.append(one)
        return done

    def accounts(self) -> Mapping[str, Account]:
        """Return what was done since the shard was opened, by kind."""
        return self._accounts

    def _next(self, latest_us: int, events: int, rules: CountingRules, urgent_only: bool) -> Tended | None:
        if self._wal_bytes() >= WAL_BYTES:
            return self._checkpoint()
        if urgent_only:
            return None
        if self._round is None:
            place = latest_us // DAY_US, compaction.find_over(latest_us), events // LOOK_EVENTS
            if self._looked == place:
                return None
            self._looked = place
            self._round = self._look(latest_us, rules)
        try:
            one = next(self._round, None)
        except BaseException:
            self._round = self._looked = None
            raise
        if one is None:
            self._round = None
        return one

    def _wal_bytes(self) -> int:
        try:
            return self._wal.stat().st_size
        except FileNotFoundError:
            return 0

    def _checkpoint(self) -> Tended | None:
        """Write the log into the file; None where a reader still needs what an update replaced: then it is tried again."""
        wal_bytes = self._wal_bytes()
        with self._transaction():
            pass  # a checkpoint moves rows, to which what waits to be written may point
        try:
            self._con.execute("CHECKPOINT")
        except duckdb.TransactionException:
            log.debug("event=checkpoint_waits shard=%s wal_bytes=%d", self._shard, wal_bytes)
            return None
        log.debug("event=checkpoint shard=%s wal_bytes=%d", self._shard, wal_bytes)
        return Tended("checkpoint")

    def _look(self, latest_us: int, rules: CountingRules) -> Iterator[Tended]:
        """Find what is due and do it, a slice each time the next one is asked for."""
        if rules.retention_us:
            yield from self._expire(retention.find_cut(self._con, latest_us, rules))
        over = compaction.find_over(latest_us)
        for deltas in compaction.DELTAS:
            rows = compaction.count_rows(self._con, deltas)
            last_over, last_rows = self._seen.get(deltas.table, (None, 0))
            if over == last_over and rows - last_rows < max(LOOK_DAYS * rules.compact_rows, rows // LOOK_SHARE):
                continue
            grown = compaction.find_grown_days(self._con, deltas, rules.compact_rows, over)
            yield Tended("look", table=deltas.table)
            for day, held in grown:
                yield from self._compact(deltas, day, held)
            self._seen[deltas.table] = over, compaction.count_rows(self._con, deltas)

    def _expire(self, cut_us: int) -> Iterator[Tended]:
        """Forget what is before the cut, its lists once they are folded."""
        if cut_us <= self._expired_us:
            return
        for day in rollups.find_unfolded(self._con, retention.to_day(cut_us)):
            yield from self._compact(compaction.WINDOWS, day, compaction.count_day(self._con, compaction.WINDOWS, day))
        for table, day in retention.find_expired(self._con, cut_us):
            with self._transaction():
                rows = retention.expire(self._con, table, day)
            log.info("event=expired shard=%s table=%s day=%s rows=%d", self._shard, table, day, rows)
            yield Tended("expiry", table=table, day=day, rows_before=rows)
        self._expired_us = cut_us

    def _compact(self, deltas: Deltas, day: date, held: int) -> Iterator[Tended]:
        names = self._shard, deltas.table, day
        log.info("event=compaction_began shard=%s table=%s day=%s rows=%d", *names, held)
        read = left = 0
        for piece in compaction.slice_day(self._con, deltas, day, held):
            with self._transaction():
                before, after = compaction.compact_slice(self._con, deltas, piece)
                read, left = read + before, left + after
                compaction.remember_compacted(self._con, deltas, day, left)
            yield Tended("compaction", table=deltas.table, day=day, rows_before=before, rows_after=after)
        log.info("event=day_compacted shard=%s table=%s day=%s rows_before=%d rows_after=%d", *names, read, left)


REST = 9.0
"""Upkeep rests so many times as long as it took: it gets a tenth of one core, and few batches meet a slice."""


class Pace:
    """One for all shards of a worker, each of which asks from its own thread.

    While one of them uses its turn, and until it has rested, there is none for the others: four shards of a busy topic come to
    their compaction in the same second.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._free_at = -math.inf

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Give whether there is a turn now. Whoever got it has it for as long as this is open."""
        began = self._clock()
        with self._lock:
            is_free = began >= self._free_at
            if is_free:
                self._free_at = math.inf
        try:
            yield is_free
        finally:
            if is_free:
                ended = self._clock()
                with self._lock:
                    self._free_at = ended + REST * (ended - began)
