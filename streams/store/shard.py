"""The store: one partition's counts in one DuckDB file.

A batch's state change and the Kafka offsets it came from are one transaction, so a crash leaves either both or neither, and
reading on from the stored offset counts every event once. The file's lock keeps a second worker out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting import attribution, clicks, cooccurrence, deduplication, key_index, quarantine, retention, rollups, windows
from streams.counting import batch as intake
from streams.counting.batch import Batch
from streams.counting.connection import Feeds
from streams.counting.recent_rows import Recent, load_recent
from streams.events.columns import Columns
from streams.events.rules import CountingRules
from streams.events.schema import Reason, Reject
from streams.store import compaction
from streams.store.buffer_pool import LIMIT, Pool
from streams.store.maintenance import Account, Tended, Upkeep
from streams.store.schema import StoreError, prepare
from streams.store.totals import Applied, ShardTotals, add_change, difference, load_totals, move, save_totals

__all__ = ["Applied", "CountingRules", "OffsetGap", "Shard", "ShardTotals", "StoreError"]

OPTIONS: dict[str, Any] = {
    "threads": 1,
    "memory_limit": LIMIT,
    # A commit that brings the write-ahead log over this writes into the file instead, which saves a large batch the log. Every
    # checkpoint rewrites the ends of the tables, so small batches share one: some 10,000 events, 15 to 25 ms.
    "checkpoint_threshold": "4MB",
    "max_vacuum_tasks": 0,  # else every fourth checkpoint merges row groups for seconds
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
}
# FSST halves the file and doubles what a checkpoint costs. DuckDB ignores this one among the options of a connection.
WITHOUT_FSST = "SET disabled_compression_methods = 'fsst,dict_fsst'"

TRIM_EVENTS = 20_000
"""Events after which the pool is looked at, and cut back if it is full: 6 to 8 MB."""


class _CutPiece(Exception):
    """Piece `number` of a batch must be cut into `parts`: an event came again whose id was freed in it."""

    def __init__(self, number: int, parts: list[Batch]) -> None:
        super().__init__(number)
        self.number = number
        self.parts = parts


class OffsetGap(StoreError):
    """Records are missing between what the shard has applied and what it is given."""


class Shard:
    """One partition's state. Not thread-safe: one thread calls it. Make it with `Shard.open`."""

    def __init__(self, con: duckdb.DuckDBPyConnection, path: Path, rules: CountingRules) -> None:
        self._con = con
        self._path = path
        self._rules = rules
        self._totals = load_totals(con)
        self._changes: Counter[date] = Counter()
        self._known: key_index.KnownKeys | None = None
        self._recent: Recent | None = None
        self._written_events = self._totals.events
        self._feeds = Feeds(con)
        self._upkeep = Upkeep(con, path, self._transaction)
        self._pool = Pool(con)
        self._trim_at = TRIM_EVENTS

    @classmethod
    def open(cls, path: Path, rules: CountingRules, read_only: bool = False) -> Shard:
        """Open a shard's file, or make it; raise StoreError when it is locked, of another layout or no shard."""
        if not read_only:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            con = duckdb.connect(str(path), read_only=read_only, config=OPTIONS)
        except duckdb.Error as error:
            raise StoreError(f"cannot open shard {path}: {error}") from error
        try:
            con.execute(WITHOUT_FSST)
            prepare(con, path, read_only)
            return cls(con, path, rules)
        except BaseException:
            con.close()
            raise

    def position(self) -> tuple[str, int] | None:
        """Return the topic id and the next offset to read, None for a new shard."""
        totals = self._totals
        return None if totals.topic_id is None or totals.next_offset is None else (totals.topic_id, totals.next_offset)

    def apply(
        self,
        columns: Columns,
        *,
        topic_id: str,
        first_offset: int,
        next_offset: int,
        now: float,
        write: bool = True,
    ) -> Applied:
        """Count the events of the records first_offset <= offset < next_offset, in one transaction with the offsets.

        Without `write` that transaction may come later, for many batches at once: with the first of them that needs the file, or
        with `write()`, which every method calls that reads the file. What was applied before is dropped. `now` is the clock,
        seconds since the epoch, for the future-event check. Another topic id than the stored one starts over at that topic's
        offsets; repeats are then known by their ids. Raises OffsetGap when records are missing.
        """
        self._remember()
        if topic_id == self._totals.topic_id and self._totals.next_offset is not None:
            expected = self._totals.next_offset
            if next_offset <= expected:
                return Applied()
            if first_offset > expected:
                raise OffsetGap(f"shard {self._path}: next offset is {expected}, records start at {first_offset}")
            if first_offset < expected:
                columns = intake.drop_applied(columns, expected)
        moved = move(self._totals, topic_id, next_offset)
        pieces = [intake.take_in(columns, moved.latest_us, self._rules, round(now * 1_000_000))]
        before = self._totals
        while not self._count_pieces(moved, pieces, write):
            self._remember()
        return difference(before, self._totals)

    def write(self) -> None:
        """Write the batches that were applied without, all of them in one transaction."""
        if self.is_unwritten:
            with self._undoing():
                self._commit(self._totals)

    @property
    def is_unwritten(self) -> bool:
        """Whether something was applied that is not in the file yet."""
        return self._totals.written_offset != self._totals.next_offset

    @property
    def unwritten_events(self) -> int:
        """Events that were applied and are not in the file yet."""
        return self._totals.events - self._written_events

    def finish(self, now: float) -> Applied:
        """End an isolated log: every click that still waits becomes an orphan."""
        before, recent, change = self._totals, self._remember(), attribution.Change()
        with self._undoing():
            self._expire_pending(attribution.NEVER_US, before.latest_us, change, recent)
            self._commit(add_change(before, change))
        return difference(before, self._totals)

    def windows(self, as_of: date) -> pa.Table:
        """Return query_norm, item_norm, position, impressions, clicks over the 14 UTC days before `as_of`, sorted."""
        self.write()
        return windows.read_windows(self._con, as_of)

    def cooccurrence(self, as_of: date) -> pa.Table:
        """Return query, next_query, count (normalised) over the 14 UTC days before `as_of`, sorted."""
        self.write()
        return cooccurrence.read_cooccurrence_window(self._con, as_of)

    def quarantine(self) -> pa.Table:
        """Return id, reason, detail, event_id, ts_us, raw, log_offset, line, published, in order of arrival."""
        self.write()
        return quarantine.read_quarantine(self._con)

    def unpublished(self, limit: int = 1000) -> pa.Table:
        """Return quarantine rows that are not yet in the quarantine topic."""
        self.write()
        return quarantine.read_unpublished(self._con, limit)

    def mark_published(self, ids: Sequence[int]) -> None:
        """Say of quarantine rows (their `id`) that the quarantine topic has them."""
        with self._transaction():
            quarantine.mark_published(self._con, ids)

    def totals(self) -> ShardTotals:
        """Return the shard's account as it stands."""
        return self._totals

    @property
    def rules(self) -> CountingRules:
        """The rules that this shard counts by."""
        return self._rules

    def reader(self) -> duckdb.DuckDBPyConnection:
        """Return a second connection to the same file, for reading from another thread; it sees whole transactions only.

        What is not written yet is not seen by it.

        Another thread reads within `reading`.
        """
        return self._con.cursor()

    def reading(self) -> AbstractContextManager[None]:
        """While this is open the memory of other threads' reads is left to them."""
        return self._pool.reading()

    def changes(self, day: date) -> int:
        """Return how often a day's data changed since the shard was opened."""
        return self._changes[day]

    def mark_exported(self, day: date, changes: int | None = None) -> bool:
        """Say of a day that the lake holds it as it stands, or as it stood at `changes`.

        False where it changed since then: it is still to be exported again.
        """
        changed = changes is not None and changes != self._changes[day]
        with self._transaction():
            retention.mark_exported(self._con, day, changed)
        if self._recent and not changed:
            self._recent.dirty.discard(day)
        self._totals = replace(self._totals, days_exported=retention.read_exported(self._con))
        return not changed

    def tend(self, budget_s: float = 0.25, urgent_only: bool = False) -> list[Tended]:
        """Do the upkeep that is due (a checkpoint, which is urgent, expiry, compaction) for about `budget_s` seconds.

        It changes no count.
        """
        done: list[Tended] | None = None
        try:
            done = self._upkeep.tend(self._totals.latest_us, self._totals.events, self._rules, budget_s, urgent_only)
        finally:
            if done is None or any(one.kind == "expiry" for one in done):
                self._recent = None
                self._totals = replace(self._totals, days_exported=retention.read_exported(self._con))
        if self._recent and any(one.table == compaction.WINDOWS.table for one in done):
            self._recent.folds = rollups.read_folds(self._con)
        if done or self._totals.events >= self._trim_at:
            self._trim_at = self._totals.events + TRIM_EVENTS
            self._pool.trim()
        return done

    def upkeep(self) -> Mapping[str, Account]:
        """Return what upkeep has done since the shard was opened, by kind. Safe from any thread."""
        return self._upkeep.accounts()

    def close(self) -> None:
        """Write what is not written yet, close the file and give up its lock."""
        try:
            self.write()
        finally:
            self._con.close()

    def _count_pieces(self, totals: ShardTotals, pieces: list[Batch], write: bool) -> bool:
        """Count a batch's pieces; where one must be cut, undo all of them, cut it in `pieces`, return False.

        They are written at once where `write` says so, or where one of them needed the file.
        """
        try:
            with self._undoing():
                for number, piece in enumerate(pieces):
                    before_us = totals.latest_us
                    totals, conflicts = self._count(totals, piece)
                    if conflicts:
                        raise _CutPiece(number, intake.split(piece, conflicts, before_us))
                if write or self._feeds.in_transaction:
                    self._commit(totals)
                else:
                    self._totals = totals
        except _CutPiece as cut:
            pieces[cut.number : cut.number + 1] = cut.parts
            return False
        return True

    def _count(self, totals: ShardTotals, batch: Batch) -> tuple[ShardTotals, list[int]]:
        """Count a batch; return the totals after it, and where the batch must be cut if it must."""
        feeds, rules, recent = self._feeds, self._rules, self._remember()
        recent.begin_batch()
        known = self._known = self._known or key_index.load_keys(self._con)
        sifted = deduplication.drop_repeats(feeds, batch, rules, known.seen, recent)
        fresh = sifted.fresh
        rejected = quarantine.add_rejects(feeds, fresh.rejects, batch.latest_us, recent.quarantined)
        change = attribution.attribute(feeds, fresh, rules, known.impressions, recent)
        change.days |= cooccurrence.count_queries(feeds, fresh.queries, rules, recent)
        change.counted += len(fresh.queries)
        self._soil(change, recent)
        self._repair(sifted, rejected, change, recent)
        change.quarantined.update(attribution.keep_refused(feeds, change, batch.latest_us, recent.quarantined))
        orphans = self._forget(batch.latest_us, change, recent) if batch.latest_us is not None and rules.retention_us else []
        freed = [reject for _, reject, _ in change.refused] + orphans
        after = add_change(replace(totals, latest_us=batch.latest_us, events=totals.events + len(batch)), change)
        return after, deduplication.find_conflicts(batch, sifted, freed, change.rejudged)

    def _remember(self) -> Recent:
        """Return what is kept in memory. Where it was lost it is read anew, from all that was applied."""
        if self._recent is None:
            self.write()
            self._recent = load_recent(self._con, self._totals.latest_us, self._rules)
        return self._recent

    def _soil(self, change: attribution.Change, recent: Recent) -> None:
        retention.soil_days(self._feeds, change.days, recent.dirty)
        self._changes.update(change.days)

    def _repair(
        self,
        sifted: deduplication.Sifted,
        rejected: list[tuple[str | None, Reason]],
        change: attribution.Change,
        recent: Recent,
    ) -> None:
        """Withdraw what the batch repaired, then keep the rejects that came after an event of theirs, and note both."""
        fresh, outlived = sifted.fresh, sifted.outlived
        withdrawn = self._withdraw(fresh, change, recent)
        rejected += quarantine.add_rejects(self._feeds, outlived, fresh.latest_us, recent.quarantined)
        change.quarantined.subtract(str(reason) for _, reason in withdrawn)
        change.quarantined.update(str(reason) for _, reason in rejected)
        change.duplicates += int(sifted.gone.sum()) + sifted.rejects_repeated + len(withdrawn)
        change.duplicates += len(fresh.rejects) + len(outlived) - len(rejected)

    def _withdraw(self, fresh: Batch, change: attribution.Change, recent: Recent) -> list[tuple[str, Reason]]:
        """Withdraw what is in quarantine of the events that were taken in, and forget the refused clicks among it."""
        tables = [fresh.queries, fresh.impressions, *([change.fitting] if change.fitting else [])]
        event_keys = [*(table["key"].to_numpy() for table in tables), np.array([*change.taken_in.values()], np.uint64)]
        maybe = recent.quarantined.ids.contains(np.concatenate(event_keys))
        if not maybe.any():
            return []
        ids = [chunk for table in tables for chunk in table["event_id"].chunks] + [pa.array([*change.taken_in], pa.string())]
        withdrawn = quarantine.withdraw(self._feeds, pa.chunked_array(ids).filter(pa.array(maybe)))
        if versions := [event_id for event_id, reason in withdrawn if reason in quarantine.CLICK_REASONS]:
            clicks.forget_refused(self._feeds, versions)
        return withdrawn

    def _forget(self, latest_us: int, change: attribution.Change, recent: Recent) -> list[Reject]:
        """Expire waiting clicks; return the orphans."""
        return self._expire_pending(latest_us - self._rules.attribution_window_us, latest_us, change, recent)

    def _expire_pending(self, before_us: int, latest_us: int | None, change: attribution.Change, recent: Recent) -> list[Reject]:
        orphans = attribution.find_orphans(self._feeds, before_us, recent)
        added = quarantine.add_rejects(self._feeds, orphans, latest_us, recent.quarantined)
        change.quarantined.update(str(reason) for _, reason in added)
        change.duplicates += len(orphans) - len(added)
        change.waiting -= len(orphans)
        return orphans

    def _commit(self, totals: ShardTotals) -> None:
        """Write all that waits for it, and the totals, which stand from then on."""
        totals = replace(totals, written_offset=totals.next_offset)
        save_totals(self._feeds, totals)
        self._feeds.commit()
        self._totals, self._written_events = totals, totals.events
        if self._recent:
            self._recent.note_written()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction for what is no batch; what was applied before is written in it."""
        with self._undoing():
            self._feeds.begin()
            yield
            self._commit(self._totals)

    @contextmanager
    def _undoing(self) -> Iterator[None]:
        """Undo what is done in it where it fails; what waited to be written before waits again."""
        put_off = self._feeds.put_off()
        try:
            yield
        except BaseException:
            self._recent = None
            self._feeds.roll_back(put_off)
            raise
        finally:
            self._feeds.drop_tables()
