"""Deduplication: an event id counts once in its session, however often it is delivered.

Every event that passed deduplication is in `seen`. Its id is occupied while an event with it counts or waits. When a click is
refused its id becomes free, so that a repaired version is treated like a new event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting import quarantine
from streams.counting.attribution import Reattributed
from streams.counting.batch import Batch, split_values
from streams.counting.connection import ShardConnection
from streams.counting.key_index import KeySet, hash_texts, to_session_keys
from streams.counting.recent_rows import RecentRows, RecentState
from streams.events.line_spans import Flags, Int64s
from streams.events.rules import CountingRules
from streams.events.schema import MAX_TS_US, Reason, Reject
from streams.events.time_ranges import group_times

TABLES = """
CREATE TABLE seen (ts_us BIGINT, key UBIGINT, event_id VARCHAR);
"""
"""`key` is that of the event id in its session (`streams.counting.key_index`)."""

# Joining 64-bit keys first and comparing texts only among the hits reads an eighth of what a join on the texts does. An event
# older than the retention counts as expired, even if its day is not deleted yet.
FIND_SEEN = """
WITH hits AS MATERIALIZED (
    SELECT i.row, i.event_id, s.event_id AS seen_id
    FROM seen s JOIN maybe_seen i ON s.key = i.key WHERE s.ts_us >= i.oldest_us AND s.ts_us BETWEEN $low AND $high
)
SELECT DISTINCT row FROM hits WHERE event_id = seen_id
"""
INSERT = "INSERT INTO seen SELECT ts_us, key, event_id FROM fresh"


NEVER = (2**62, 0)
LOOKUP = pa.schema(
    [
        ("event_id", pa.string()),
        ("session_id", pa.string()),
        ("ts_us", pa.int64()),
        ("seq", pa.int64()),
        ("arrival_us", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """A batch without its duplicates (`fresh`); `duplicates` flags these among the batch's events, table after table.

    `duplicate_rejects` is the number of rejects whose id was occupied. `rejects_after_expiry` have the id of an event in `fresh`
    that was already older than the retention when they arrived.
    """

    fresh: Batch
    duplicates: Flags
    duplicate_rejects: int
    rejects_after_expiry: list[Reject]


def add_keys(connection: ShardConnection, batch: Batch, of_queries: bool = False) -> tuple[list[pa.Table], pa.Table]:
    """Return the batch's tables with keys, and the table in which duplicates are found.

    `key` is that of the event id; queries also get `session_key`, impressions and clicks `impression_key`. The other table has a
    row for each event, table after table, and then for each reject: LOOKUP and `key`; `ts_us` is -1 for a reject without a time.
    For caps (`of_queries`) queries and impressions both get `session_key` and `query_key`, the hash of `query_norm`.
    """
    queries, impressions, clicks = batch.tables
    lookup = pa.concat_tables([*(table.select(LOOKUP.names) for table in batch.tables), *_reject_rows(batch)]).combine_chunks()
    lists = [impressions["impression_id"], clicks["impression_id"]]
    texts = [queries["query_norm"], impressions["query_norm"]] if of_queries else []
    hashes, sessions, *others = hash_texts(connection, [lookup["event_id"], lookup["session_id"], *lists, *texts])
    list_hashes, query_hashes = others[:2], others[2:]
    session_keys = to_session_keys(sessions)
    keys = hashes ^ session_keys
    asked_in, *of_others = split_values(session_keys, batch.tables)
    other_keys = [asked_in, *(own ^ session for own, session in zip(list_hashes, of_others, strict=True))]
    names = ("session_key", "impression_key", "impression_key")
    keyed = [
        table.append_column("key", pa.array(own)).append_column(name, pa.array(other))
        for table, own, name, other in zip(batch.tables, split_values(keys, batch.tables), names, other_keys, strict=True)
    ]
    if of_queries:
        keyed[1] = keyed[1].append_column("session_key", pa.array(of_others[0]))
        keyed[:2] = [table.append_column("query_key", pa.array(own)) for table, own in zip(keyed[:2], query_hashes, strict=True)]
    return keyed, lookup.append_column("key", pa.array(keys))


def _reject_rows(batch: Batch) -> list[pa.Table]:
    if not batch.rejects:
        return []
    ids = [reject.event_id for reject in batch.rejects]
    sessions = [reject.session_id for reject in batch.rejects]
    times = [-1 if reject.ts_us is None else reject.ts_us for reject in batch.rejects]
    columns = zip(LOOKUP.names, (ids, sessions, times, batch.reject_seq, batch.reject_arrival_us), strict=True)
    return [pa.table(dict(columns), schema=LOOKUP)]


def drop_duplicates(
    connection: ShardConnection, batch: Batch, rules: CountingRules, known_keys: KeySet, recent: RecentState
) -> Deduplicated:
    """Separate a batch's new events from its duplicates, of earlier events and inside it, and add the new ones to `seen`.

    `known_keys` has the keys of `seen`.
    """
    tables, lookup = add_keys(connection, batch, rules.has_caps)
    occupied = _find_seen(connection, lookup, rules, known_keys, recent)
    number = len(batch) - len(batch.rejects)
    events, duplicates, repeated_rejects = lookup.slice(0, number), occupied[:number], occupied[number:]
    duplicates |= _find_duplicates_inside(events, duplicates, rules.retention_us)
    new = events.select(["event_id", "key", "ts_us"])
    if duplicates.any():
        new = new.filter(pa.array(~duplicates))
        tables = [table.filter(pa.array(flags)) for table, flags in zip(tables, split_values(~duplicates, tables), strict=True)]
    keys = new["key"].to_numpy()
    known_keys.add(keys)
    recent.events.add(keys, new.select(["event_id", "ts_us"]), recent.batch)
    if len(keys):
        connection.defer(INSERT, "fresh", new)
    after_expiry = _find_after_expiry(tables, batch, rules.retention_us) & ~repeated_rejects
    kept = [reject for reject, drop in zip(batch.rejects, repeated_rejects | after_expiry, strict=True) if not drop]
    fresh = replace(batch, queries=tables[0], impressions=tables[1], clicks=tables[2], rejects=kept)
    late = [reject for reject, is_late in zip(batch.rejects, after_expiry, strict=True) if is_late]
    return Deduplicated(fresh, duplicates, int(repeated_rejects.sum()), late)


def find_split_points(batch: Batch, deduplicated: Deduplicated, refused: list[Reject], reattributed: Reattributed) -> list[int]:
    """Return at which `seq` a batch must be split, because the id of an event became free or occupied inside the batch.

    `refused` are the clicks that the batch sent to quarantine. Whether a later event with their id is a duplicate depends on
    whether it arrived before the refusal, which a batch as a whole does not show; at the start of a batch it is clear. The same
    is true of a click whose list was replaced inside the batch: one list may have refused it, and the next one not.
    """
    found = _find_refused_again(batch, deduplicated, refused) | _find_reattributed(batch, deduplicated, reattributed)
    if not found:
        return []
    seqs = [seq for seq in _seqs(batch) if len(seq)]
    first, last = min(int(seq.min()) for seq in seqs), max(int(seq.max()) for seq in seqs)
    return sorted(seq for seq in found if first < seq <= last)


def _find_refused_again(batch: Batch, deduplicated: Deduplicated, refused: list[Reject]) -> set[int]:
    """Return where the ids of refused clicks recur, except with equal bytes, which are refused again (orphans may not be)."""
    if not refused or not (deduplicated.duplicates.any() or batch.rejects):
        return set()
    by_id = {reject.event_id: reject for reject in refused}
    again = _with_ids(_select_duplicates(batch, deduplicated.duplicates), by_id)
    texts = batch.texts.take(again["row"].to_numpy())
    found = {
        seq
        for text, event_id, seq in zip(texts, again["event_id"].to_pylist(), again["seq"].to_pylist(), strict=True)
        if text != by_id[event_id].raw or by_id[event_id].reason is Reason.ORPHAN_CLICK
    }
    return found | {int(seq) for r, seq in zip(batch.rejects, batch.reject_seq, strict=True) if r.event_id in by_id}


def _find_reattributed(batch: Batch, deduplicated: Deduplicated, reattributed: Reattributed) -> set[int]:
    """Return the `seq` of events, and the one after each, that have the id of a re-attributed click."""
    found = []
    if reattributed.earlier:
        found += [_with_ids(table.select(["event_id", "seq"]), reattributed.earlier) for table in deduplicated.fresh.tables]
    if reattributed.earlier or reattributed.fresh:
        found.append(_with_ids(_select_duplicates(batch, deduplicated.duplicates), reattributed.earlier | reattributed.fresh))
    seqs = [seq for table in found for seq in table["seq"].to_pylist()]
    return {*seqs, *(seq + 1 for seq in seqs)}


def _select_duplicates(batch: Batch, duplicates: Flags) -> pa.Table:
    """Return event_id, row, seq of a batch's duplicates."""
    tables = [table.select(["event_id", "row", "seq"]) for table in batch.tables]
    return pa.concat_tables(
        [table.filter(pa.array(flags)) for table, flags in zip(tables, split_values(duplicates, tables), strict=True)]
    )


def _with_ids(events: pa.Table, ids: Iterable[str | None]) -> pa.Table:
    return events.filter(pc.is_in(events["event_id"], value_set=pa.array(list(ids), pa.string())))


def _seqs(batch: Batch) -> list[Int64s]:
    return [*(table["seq"].to_numpy() for table in batch.tables), batch.reject_seq]


def _find_seen(
    connection: ShardConnection, lookup: pa.Table, rules: CountingRules, known_keys: KeySet, recent: RecentState
) -> Flags:
    """Return for each row of `lookup` whether its id is occupied."""
    keys = lookup["key"].to_numpy()
    found = np.zeros(len(keys), np.bool_)
    maybe = known_keys.contains(keys).nonzero()[0]
    if not len(maybe):
        return found
    oldest_us = lookup["arrival_us"].to_numpy() - rules.retention_us
    is_recent = _find_recent(lookup, maybe, oldest_us, recent.events)
    hits = maybe[is_recent]
    if not is_recent.all():
        recent.make_unwritten_visible(connection, recent.events)
        hits = np.concatenate([hits, _look_up(connection, lookup, maybe[~is_recent], oldest_us)])
    refused = hits[recent.quarantine_keys.ids.contains(keys[hits])]
    found[hits] = True
    if len(refused):
        events = lookup.select(["event_id", "session_id"]).take(pa.array(refused))
        unoccupied = quarantine.find_unoccupied(connection, events)
        names = zip(events["event_id"].to_pylist(), events["session_id"].to_pylist(), strict=True)
        found[refused] = [name not in unoccupied for name in names]
    return found


def _find_recent(lookup: pa.Table, maybe: Int64s, oldest_us: Int64s, recent: RecentRows) -> Flags:
    """Flag which of the rows `maybe` of `lookup` are among the recent events, not older than their `oldest_us`."""
    found = np.zeros(len(maybe), np.bool_)
    places, events = recent.find(lookup["key"].to_numpy()[maybe])
    if events is not None:
        rows = maybe[places]
        equal = pc.equal(events["event_id"], lookup["event_id"].take(pa.array(rows)))
        same = pc.fill_null(equal, False).to_numpy()  # a reject without an id has a key too
        found[places[same & (events["ts_us"].to_numpy() >= oldest_us[rows])]] = True
    return found


def _look_up(connection: ShardConnection, lookup: pa.Table, maybe: Int64s, oldest_us: Int64s) -> Int64s:
    """Return which of the rows `maybe` of `lookup` are in `seen`, not older than their `oldest_us`.

    A duplicate usually has its event's own time, so that range is searched first, and then for the rest the whole table.
    """
    chosen = lookup.select(["event_id", "key"]).take(pa.array(maybe))
    wanted = chosen.append_column("row", pa.array(maybe)).append_column("oldest_us", pa.array(oldest_us[maybe]))
    ts_us = lookup["ts_us"].to_numpy()[maybe]
    hits, rest = [], np.ones(len(wanted), np.bool_)
    for rows in group_times(ts_us):
        hits.append(_search(connection, wanted.take(pa.array(rows)), int(ts_us[rows].min()), int(ts_us[rows].max())))
        rest &= ~np.isin(wanted["row"].to_numpy(), hits[-1])
    if rest.any():
        hits.append(_search(connection, wanted.filter(pa.array(rest)), 0, MAX_TS_US))
    return np.concatenate(hits)


def _search(connection: ShardConnection, wanted: pa.Table, low_us: int, high_us: int) -> Int64s:
    found = connection.look_up(FIND_SEEN, {"low": low_us, "high": high_us}, maybe_seen=wanted).fetchnumpy()["row"]
    return np.asarray(found, np.int64)


def _find_duplicates_inside(events: pa.Table, occupied: Flags, retention_us: int) -> Flags:
    """Flag the rows whose event_id is earlier in the batch, within the retention; `occupied` ones are duplicates already."""
    repeats = np.zeros(len(events), np.bool_)
    rows = _find_shared(events)
    if not len(rows):
        return repeats
    keys, ids = events["key"].to_numpy()[rows], events["event_id"].take(pa.array(rows)).combine_chunks()
    ts_us, oldest_us = events["ts_us"].to_numpy()[rows], events["arrival_us"].to_numpy()[rows] - retention_us
    later = (keys[1:] == keys[:-1]).nonzero()[0] + 1
    begins = np.ones(len(rows), np.bool_)
    begins[later] = False
    first = np.maximum.accumulate(np.where(begins, np.arange(len(rows)), 0))[later]
    same = pc.equal(ids.take(pa.array(first)), ids.take(pa.array(later))).to_numpy(zero_copy_only=False)
    # Nearly always the first one counts, and all that share its key are its duplicates.
    if (occupied[rows[later]] | (same & ~occupied[rows[first]] & (ts_us[first] >= oldest_us[later]))).all():
        repeats[rows[later]] = True
        return repeats
    last_new: dict[tuple[int, str], tuple[int, bool]] = {}
    columns = (rows, keys, ids.to_numpy(zero_copy_only=False), ts_us, oldest_us, occupied[rows])
    for row, key, event_id, at_us, since_us, is_occupied in zip(*(column.tolist() for column in columns), strict=True):
        before = last_new.get((key, event_id))
        repeats[row] = is_repeat = before is not None and not before[1] and before[0] >= since_us
        if before is None or not (is_occupied or is_repeat):
            last_new[key, event_id] = at_us, is_occupied
    return repeats


def _find_shared(events: pa.Table) -> Int64s:
    """Return the rows whose key another row has too, by key and then in log order."""
    keys = events["key"].to_numpy()
    order = keys.argsort()
    ascending = keys[order]
    again = ascending[1:] == ascending[:-1]
    rows: Int64s = order[np.append(again, False) | np.append(False, again)] if again.any() else order[:0]
    return rows[np.lexsort((events["seq"].to_numpy()[rows], keys[rows]))]


def _find_after_expiry(tables: Sequence[pa.Table], batch: Batch, retention_us: int) -> Flags:
    """Flag the rejects that arrived after an event with their id in the batch, when that was older than the retention."""
    found = np.zeros(len(batch.rejects), np.bool_)
    if not retention_us or not len(found):
        return found
    ids = pa.array({reject.event_id for reject in batch.rejects}, pa.string()).drop_null()
    events = pa.concat_tables([table.select(["event_id", "session_id", "seq", "ts_us"]) for table in tables])
    same = events.filter(pc.is_in(events["event_id"], value_set=ids))
    columns = (column.to_pylist() for column in same.columns)
    events_by_id = {(name, session): (seq, ts_us) for name, session, seq, ts_us in zip(*columns, strict=True)}
    for row, reject in enumerate(batch.rejects):
        seq, ts_us = events_by_id.get((reject.event_id, reject.session_id), NEVER)
        found[row] = seq < batch.reject_seq[row] and ts_us < batch.reject_arrival_us[row] - retention_us
    return found
