"""A shard: the counts of one partition in one DuckDB file.

The changes of a batch and its Kafka offsets are written in one transaction, so a crash leaves both or neither, and reading on
from the stored offset counts every event once. The lock on the file keeps a second worker out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from streams.counting import attribution, clicks, deduplication, erasure, key_index, quarantine, retention, rollups
from streams.counting.acceptance import accept, drop_applied
from streams.counting.batch import Batch, MustSplit, split_batch
from streams.counting.caps import left_out
from streams.counting.caps.repeats import CapState
from streams.counting.connection import ShardConnection
from streams.counting.cooccurrence import count_queries, read_cooccurrence_window
from streams.counting.quarantine import Row
from streams.counting.recent_rows import RecentState, load_recent_state
from streams.counting.record_times import NO_TIMES, RecordTimes
from streams.counting.windows import read_windows
from streams.events.columns import Columns
from streams.events.erasures import NO_TOMBSTONES, Subject
from streams.events.rules import CountingRules
from streams.events.schema import Reason, Reject
from streams.store import compaction
from streams.store.buffer_pool import BufferPool
from streams.store.maintenance import Maintenance, MaintenanceSlice, MaintenanceTotals
from streams.store.schema import StoreError
from streams.store.shard_file import OffsetGap, ShardInUse, open_shard_file
from streams.store.totals import Applied, ShardTotals, add_change, load_totals, move, save_totals, subtract_totals

__all__ = ["Applied", "CountingRules", "OffsetGap", "Shard", "ShardInUse", "ShardTotals", "StoreError"]

TRIM_EVENTS = 20_000
"""Events after which the buffer pool is checked, and trimmed if it is full: 6 to 8 MB."""


class Shard:
    """The state of one partition. Create it with `Shard.open`. Not thread-safe: call it from one thread."""

    def __init__(self, con: duckdb.DuckDBPyConnection, path: Path, rules: CountingRules) -> None:
        self._con = con
        self._path = path
        self._rules = rules
        self._totals = load_totals(con)
        self._changes: Counter[date] = Counter()
        self._known_keys: key_index.KnownKeys | None = None
        self._recent: RecentState | None = None
        self._caps = CapState()
        self.tombstones = NO_TOMBSTONES
        self._written_events = self._totals.events
        self._connection = ShardConnection(con)
        self._maintenance = Maintenance(con, path, self._transaction)
        self._buffer_pool = BufferPool(con)
        self._trim_at = TRIM_EVENTS

    @classmethod
    def open(cls, path: Path, rules: CountingRules, read_only: bool = False) -> Shard:
        """Open a shard's file, or create it. Raises ShardInUse, and StoreError when it cannot be read."""
        shard = cls(open_shard_file(path, read_only), path, rules)
        if not read_only:
            shard._apply_caps()
        return shard

    def position(self) -> tuple[str, int] | None:
        """Return the topic id and the next offset to read, None if the shard is new."""
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
        record_times: RecordTimes = NO_TIMES,
    ) -> Applied:
        """Count the events of the records first_offset <= offset < next_offset, in one transaction with the offsets.

        Without `write` the transaction may be committed later, for many batches at once: with the first batch that needs the
        file, or by `write()`, which every method calls that reads the file. Records applied before are dropped. `now` (seconds
        since the epoch) is the clock for the check of future events, `record_times` are the times of the records in Kafka. With
        another topic id than the stored one the offsets start over, and events counted before are duplicates by their ids.
        Raises OffsetGap when records are missing.
        """
        self._load_recent()
        if topic_id == self._totals.topic_id and self._totals.next_offset is not None:
            expected = self._totals.next_offset
            if next_offset <= expected:
                return Applied()
            if first_offset > expected:
                raise OffsetGap(f"shard {self._path}: next offset is {expected}, records start at {first_offset}")
            if first_offset < expected:
                columns = drop_applied(columns, expected)
        moved = move(self._totals, topic_id, next_offset)
        times = record_times if self._rules.record_times else NO_TIMES
        parts = [accept(columns, moved.latest_us, self._rules, round(now * 1_000_000), times)]
        if self.tombstones:
            parts[0], dropped = erasure.drop_erased(parts[0], self.tombstones)
            moved = replace(moved, events=moved.events + dropped, erased=moved.erased + dropped)
        before = self._totals
        while not self._count_parts(moved, parts, write):
            self._load_recent()
        return subtract_totals(before, self._totals)

    def write(self) -> None:
        """Write all batches that were applied and not written yet, in one transaction."""
        if self.is_unwritten:
            with self._undo_on_error():
                self._commit(self._totals)

    @property
    def is_unwritten(self) -> bool:
        """Whether some applied batch is not in the file yet."""
        return self._totals.written_offset != self._totals.next_offset

    @property
    def unwritten_events(self) -> int:
        """The number of applied events that are not in the file yet."""
        return self._totals.events - self._written_events

    def erase(self, subject: Subject, dry_run: bool = False) -> erasure.Erased:
        """Remove a session or a user from every table, and return what was there.

        Set `tombstones` first, so that its later events are dropped. With `dry_run` nothing changes. It is one transaction.
        """
        self.write()
        with self._undo_on_error():
            erased = erasure.erase(self._connection, subject, self._rules)
            if dry_run:
                self._connection.roll_back({})
                self._recent = None
                return erased
            self._caps.touch(erased.lists, erased.pairs)
            retention.mark_days_dirty(self._connection, erased.change.days, set())
            self._changes.update(erased.change.days)
            self._commit(add_change(self._totals, erased.change))
        self._recent = None
        if self._rules.retention_us and self._totals.latest_us is not None:  # clicks on an erased list may have waited too long
            self._expire(self._totals.latest_us - self._rules.attribution_window_us)
        return erased

    def finish(self, now: float) -> Applied:
        """End an isolated log: every pending click becomes an orphan."""
        before = self._totals
        self._expire(attribution.NEVER_US)
        return subtract_totals(before, self._totals)

    def windows(self, as_of: date) -> pa.Table:
        """Return query_norm, item_norm, position, impressions, clicks over the 14 UTC days before `as_of`, sorted."""
        self.write()
        return read_windows(self._con, as_of)

    def cooccurrence(self, as_of: date) -> pa.Table:
        """Return query, next_query, count (normalised) over the 14 UTC days before `as_of`, sorted."""
        self.write()
        return read_cooccurrence_window(self._con, as_of)

    def quarantine(self) -> pa.Table:
        """Return id, reason, detail, event_id, ts_us, raw, log_offset, line, published, in order of arrival."""
        self.write()
        return quarantine.read_quarantine(self._con)

    def unpublished(self, limit: int = 1000) -> pa.Table:
        """Return quarantine rows that are not in the quarantine topic yet, as `quarantine` does."""
        self.write()
        return quarantine.read_unpublished(self._con, limit)

    def mark_published(self, ids: Sequence[int]) -> None:
        """Record that the quarantine topic has the rows with these `id`s."""
        with self._transaction():
            quarantine.mark_published(self._con, ids)

    def drop_quarantined(self, reason: Reason, before_us: int | None) -> int:
        """Remove the bytes of quarantined events for good, as `streams.counting.quarantine.drop` does; return their number."""
        with self._transaction():
            return quarantine.drop(self._con, reason, before_us)

    def totals(self) -> ShardTotals:
        """Return the shard's current totals."""
        return self._totals

    @property
    def rules(self) -> CountingRules:
        """How this shard counts."""
        return self._rules

    def reader(self) -> duckdb.DuckDBPyConnection:
        """Return a second connection to the file, for reading from another thread, within `reading`.

        It sees whole transactions only, and nothing that is not written yet.
        """
        return self._con.cursor()

    def reading(self) -> AbstractContextManager[None]:
        """Return a context in which the buffer pool keeps more memory, for a read by another thread."""
        return self._buffer_pool.reading()

    def changes(self, day: date) -> int:
        """Return how many batches changed a day's data since the shard was opened."""
        return self._changes[day]

    def mark_exported(self, day: date, changes: int | None = None) -> bool:
        """Record that a day was exported, as it was when `changes(day)` returned `changes` (None: as it is now).

        Returns False if it changed since then, and stays to be exported again.
        """
        changed = changes is not None and changes != self._changes[day]
        with self._transaction():
            retention.mark_exported(self._con, day, changed)
        if self._recent and not changed:
            self._recent.dirty_days.discard(day)
        self._totals = replace(self._totals, days_exported=retention.read_exported(self._con))
        return not changed

    def maintain(self, budget_s: float = 0.25, urgent_only: bool = False) -> list[MaintenanceSlice]:
        """Do the maintenance that is due (checkpoint, expiry, compaction) for about `budget_s` seconds; return its slices.

        Only the checkpoint is urgent. Maintenance changes no count.
        """
        done: list[MaintenanceSlice] | None = None
        try:
            done = self._maintenance.run(self._totals.latest_us, self._totals.events, self._rules, budget_s, urgent_only)
        finally:
            if done is None or any(one.kind == "expiry" for one in done):
                self._recent = None
                self._totals = replace(self._totals, days_exported=retention.read_exported(self._con))
        if self._recent and any(one.table == compaction.WINDOWS.table for one in done):
            self._recent.rollups = rollups.read_rollups(self._con)
        if done or self._totals.events >= self._trim_at:
            self._trim_at = self._totals.events + TRIM_EVENTS
            self._buffer_pool.trim()
        return done

    def maintenance_totals(self) -> Mapping[str, MaintenanceTotals]:
        """Return the totals of maintenance since the shard was opened, by kind. Safe from any thread."""
        return self._maintenance.totals()

    def close(self) -> None:
        """Write what is not written yet, close the file and release its lock."""
        try:
            self.write()
        finally:
            self._con.close()

    def _count_parts(self, totals: ShardTotals, parts: list[Batch], write: bool) -> bool:
        """Count the parts of a batch and return True; if one must be split, undo all, split it in `parts` and return False.

        They are written at once if `write` is set, or if one of them needed the file.
        """
        try:
            with self._undo_on_error():
                for number, part in enumerate(parts):
                    before_us = totals.latest_us
                    totals, split_points = self._count(totals, part)
                    if split_points:
                        raise MustSplit(number, split_batch(part, split_points, before_us))
                if write or self._connection.in_transaction:
                    self._commit(totals)
                else:
                    self._totals = totals
        except MustSplit as split:
            parts[split.number : split.number + 1] = split.parts
            return False
        return True

    def _count(self, totals: ShardTotals, batch: Batch) -> tuple[ShardTotals, list[int]]:
        """Count a batch; return the totals after it, and the values of `seq` at which it must be split, if it must."""
        connection, rules, recent = self._connection, self._rules, self._load_recent()
        recent.begin_batch()
        known = self._known_keys = self._known_keys or key_index.load_keys(self._con)
        deduplicated = deduplication.drop_duplicates(connection, batch, rules, known.seen, recent)
        fresh = deduplicated.fresh
        rejected = quarantine.add_rejects(connection, fresh.rejects, batch.latest_us, recent.quarantine_keys)
        recent.caps.add(connection, fresh, rules)
        change = attribution.attribute_batch(connection, fresh, rules, known.impressions, recent)
        change.days |= count_queries(connection, fresh.queries, rules, recent)
        change.counted += len(fresh.queries)
        self._mark_dirty(change, recent)
        self._repair(deduplicated, rejected, change, recent)
        change.quarantined.update(attribution.quarantine_refused(connection, change, batch.latest_us, recent.quarantine_keys))
        refused = [reject for _, reject, _ in change.refused]
        if batch.latest_us is not None and rules.retention_us:
            before_us = batch.latest_us - rules.attribution_window_us
            refused += self._expire_pending(before_us, batch.latest_us, change, recent)
        after = add_change(replace(totals, latest_us=batch.latest_us, events=totals.events + len(batch)), change)
        return after, deduplication.find_split_points(batch, deduplicated, refused, change.reattributed)

    def _load_recent(self) -> RecentState:
        """Return the state kept in memory; load it from the file if it was dropped, after writing all that was applied."""
        if self._recent is None:
            self.write()
            self._recent = load_recent_state(self._con, self._totals.latest_us, self._rules)
            self._recent.caps = self._caps
        return self._recent

    def _mark_dirty(self, change: attribution.Change, recent: RecentState) -> None:
        retention.mark_days_dirty(self._connection, change.days, recent.dirty_days)
        self._changes.update(change.days)

    def _repair(
        self,
        deduplicated: deduplication.Deduplicated,
        rejected: list[Row],
        change: attribution.Change,
        recent: RecentState,
    ) -> None:
        """Withdraw what the batch repaired, then quarantine the rejects after expiry, and note both in `change`."""
        fresh, after_expiry = deduplicated.fresh, deduplicated.rejects_after_expiry
        withdrawn = self._withdraw(fresh, change, recent)
        rejected += quarantine.add_rejects(self._connection, after_expiry, fresh.latest_us, recent.quarantine_keys)
        change.quarantined.subtract(str(row.reason) for row in withdrawn)
        change.quarantined.update(str(row.reason) for row in rejected)
        change.duplicates += int(deduplicated.duplicates.sum()) + deduplicated.duplicate_rejects + len(withdrawn)
        change.duplicates += len(fresh.rejects) + len(after_expiry) - len(rejected)

    def _withdraw(self, fresh: Batch, change: attribution.Change, recent: RecentState) -> list[Row]:
        """Withdraw the quarantine rows of accepted events, delete the refused clicks among them, and return which rows."""
        tables = [fresh.queries, fresh.impressions, *([change.fast_path] if change.fast_path else [])]
        event_keys = [*(table["key"].to_numpy() for table in tables), np.array([*change.accepted.values()], np.uint64)]
        maybe = recent.quarantine_keys.ids.contains(np.concatenate(event_keys))
        if not maybe.any():
            return []
        names = quarantine.EVENT.names
        events = pa.concat_tables([*(table.select(names) for table in tables), quarantine.to_events([*change.accepted])])
        withdrawn = quarantine.withdraw(self._connection, events.filter(pa.array(maybe)))
        if versions := [row[:2] for row in withdrawn if row.reason in quarantine.CLICK_REASONS]:
            clicks.delete_refused(self._connection, quarantine.to_events(versions))
        return withdrawn

    def _expire(self, before_us: int) -> None:
        """Quarantine the pending clicks with ts < before_us as orphans, in a transaction."""
        recent, change = self._load_recent(), attribution.Change()
        with self._undo_on_error():
            self._expire_pending(before_us, self._totals.latest_us, change, recent)
            self._commit(add_change(self._totals, change))

    def _expire_pending(
        self, before_us: int, latest_us: int | None, change: attribution.Change, recent: RecentState
    ) -> list[Reject]:
        """Quarantine the pending clicks with ts < before_us as orphans, and return them."""
        orphans = attribution.find_orphans(self._connection, before_us, recent)
        added = quarantine.add_rejects(self._connection, orphans, latest_us, recent.quarantine_keys)
        change.quarantined.update(str(row.reason) for row in added)
        change.duplicates += len(orphans) - len(added)
        change.pending -= len(orphans)
        return orphans

    def _commit(self, totals: ShardTotals) -> None:
        """Write all deferred writes with these totals, which become the current ones."""
        totals = replace(totals, written_offset=totals.next_offset)
        if self._caps.leave_out(self._connection, self._rules):
            totals = replace(totals, left_out=left_out.measure(self._con))
        save_totals(self._connection, totals)
        self._connection.commit()
        self._caps.clear()
        self._totals, self._written_events = totals, totals.events
        if self._recent:
            self._recent.mark_written()

    def _apply_caps(self) -> None:
        """Compute anew what is over the caps, if they are others than when the shard was last open."""
        if left_out.stored_caps(self._con) != (self._rules.session_cap, self._rules.user_cap):
            with self._transaction():
                retention.mark_days_dirty(self._connection, left_out.apply_caps(self._connection, self._rules), set())
                self._totals = replace(self._totals, left_out=left_out.measure(self._con))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Return a transaction for a change that is not a batch; it also writes the batches applied before."""
        with self._undo_on_error():
            self._connection.begin()
            yield
            self._commit(self._totals)

    @contextmanager
    def _undo_on_error(self) -> Iterator[None]:
        """Return a context that on an error undoes all that was done in it, and defers again what was deferred before it."""
        deferred = self._connection.copy_deferred()
        try:
            yield
        except BaseException:
            self._recent = None
            self._connection.roll_back(deferred)
            raise
        finally:
            self._connection.clear_inputs()
