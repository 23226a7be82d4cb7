"""Repeats: an event id is counted once in a shard, however often it is delivered.

Every event that was taken in is in `seen`. An id is occupied while an event of it counts or waits; a click that was refused frees
its id, so that a repaired version is judged like a new event.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting import quarantine
from streams.counting.attribution import Rejudged
from streams.counting.batch import Batch, cut
from streams.counting.connection import Feeds
from streams.counting.key_index import KeySet, hash_texts
from streams.counting.recent_rows import Recent, RecentRows
from streams.counting.time_ranges import group_times
from streams.events.line_spans import Flags, Int64s
from streams.events.rules import CountingRules
from streams.events.schema import MAX_TS_US, Reason, Reject

TABLES = """
CREATE TABLE seen (ts_us BIGINT, key UBIGINT, event_id VARCHAR);
"""
"""`key` is hash(event_id)."""

# Joining 64-bit keys first and comparing texts only among the hits reads an eighth of what a join on the texts does. An event
# older than the retention is as good as forgotten, even where its day still waits to be.
FIND_SEEN = """
WITH hits AS MATERIALIZED (
    SELECT i.row, i.event_id, s.event_id AS seen_id
    FROM seen s JOIN intake i ON s.key = i.key WHERE s.ts_us >= i.oldest_us AND s.ts_us BETWEEN $low AND $high
)
SELECT DISTINCT row FROM hits WHERE event_id = seen_id
"""
REMEMBER = "INSERT INTO seen SELECT ts_us, key, event_id FROM fresh"


NEVER = (2**62, 0)
ASKED = pa.schema([("event_id", pa.string()), ("ts_us", pa.int64()), ("seq", pa.int64()), ("arrival_us", pa.int64())])


@dataclass(frozen=True, slots=True)
class Sifted:
    """A batch without its repeats (`fresh`); `gone` flags these among the batch's events, table after table.

    `outlived` are rejects of events in `fresh` that came when those were older than the retention.
    """

    fresh: Batch
    gone: Flags
    rejects_repeated: int
    outlived: list[Reject]


def add_keys(feeds: Feeds, batch: Batch) -> tuple[list[pa.Table], pa.Table]:
    """Return the batch's tables with the keys of their ids; and in one table its events, table after table, and then its rejects.

    `key` is that of an event id; queries get `session_key`, impressions and clicks `impression_key`. The one table has ASKED and
    `key`; a reject whose time is not known has -1.
    """
    queries, impressions, clicks = batch.tables
    asked = pa.concat_tables([*(table.select(ASKED.names) for table in batch.tables), *_asked_of_rejects(batch)]).combine_chunks()
    others = [queries["session_id"], impressions["impression_id"], clicks["impression_id"]]
    keys, *other_keys = hash_texts(feeds, [asked["event_id"], *others])
    names = ("session_key", "impression_key", "impression_key")
    keyed = [
        table.append_column("key", pa.array(own)).append_column(name, pa.array(other))
        for table, own, name, other in zip(batch.tables, cut(keys, batch.tables), names, other_keys, strict=True)
    ]
    return keyed, asked.append_column("key", pa.array(keys))


def _asked_of_rejects(batch: Batch) -> list[pa.Table]:
    if not batch.rejects:
        return []
    ids = [reject.event_id for reject in batch.rejects]
    times = [-1 if reject.ts_us is None else reject.ts_us for reject in batch.rejects]
    columns = zip(ASKED.names, (ids, times, batch.reject_seq, batch.reject_arrival_us), strict=True)
    return [pa.table(dict(columns), schema=ASKED)]


def drop_repeats(feeds: Feeds, batch: Batch, rules: CountingRules, known: KeySet, recent: Recent) -> Sifted:
    """Tell the batch's new events from what this shard has taken in and from repeats inside it; remember the new ones.

    `known` holds the keys of what it has taken in.
    """
    tables, asked = add_keys(feeds, batch)
    occupied = _find_seen(feeds, asked, rules, known, recent)
    number = len(batch) - len(batch.rejects)
    events, gone, rejects_gone = asked.slice(0, number), occupied[:number], occupied[number:]
    gone |= _repeated(events, gone, rules.retention_us)
    new = events.select(["event_id", "key", "ts_us"])
    if gone.any():
        new = new.filter(pa.array(~gone))
        tables = [table.filter(pa.array(flags)) for table, flags in zip(tables, cut(~gone, tables), strict=True)]
    keys = new["key"].to_numpy()
    known.add(keys)
    recent.events.add(keys, new.select(["event_id", "ts_us"]), recent.batch)
    if len(keys):
        feeds.add(REMEMBER, "fresh", new)
    outlived = _find_outlived(tables, batch, rules.retention_us) & ~rejects_gone
    kept = [reject for reject, is_gone in zip(batch.rejects, rejects_gone | outlived, strict=True) if not is_gone]
    fresh = replace(batch, queries=tables[0], impressions=tables[1], clicks=tables[2], rejects=kept)
    late = [reject for reject, is_late in zip(batch.rejects, outlived, strict=True) if is_late]
    return Sifted(fresh, gone, int(rejects_gone.sum()), late)


def find_conflicts(batch: Batch, sifted: Sifted, freed: list[Reject], rejudged: Rejudged) -> list[int]:
    """Return where (seq) a batch must be cut, because an event came again whose id was freed or taken inside the batch.

    `freed` are the clicks that the batch sent to quarantine. Such a repeat is a repeat or not depending on whether it came before
    the refusal, which a batch as a whole does not tell; at the beginning of a batch it is clear. So is that of a click whose list
    gave way to another one in the batch: one list may have refused it, and the next one not.
    """
    found = _find_freed(batch, sifted, freed) | _find_rejudged(batch, sifted, rejudged)
    if not found:
        return []
    seqs = [seq for seq in _seqs(batch) if len(seq)]
    first, last = min(int(seq.min()) for seq in seqs), max(int(seq.max()) for seq in seqs)
    return sorted(seq for seq in found if first < seq <= last)


def _find_freed(batch: Batch, sifted: Sifted, freed: list[Reject]) -> set[int]:
    """Return where ids come again that the batch freed; the same bytes are refused again in the same way, except an orphan."""
    if not freed or not (sifted.gone.any() or batch.rejects):
        return set()
    reasons = {reject.event_id: reject for reject in freed}
    again = _with_ids(_find_repeats(batch, sifted.gone), reasons)
    texts = batch.texts.take(again["row"].to_numpy())
    found = {
        seq
        for text, event_id, seq in zip(texts, again["event_id"].to_pylist(), again["seq"].to_pylist(), strict=True)
        if text != reasons[event_id].raw or reasons[event_id].reason is Reason.ORPHAN_CLICK
    }
    return found | {int(seq) for r, seq in zip(batch.rejects, batch.reject_seq, strict=True) if r.event_id in reasons}


def _find_rejudged(batch: Batch, sifted: Sifted, rejudged: Rejudged) -> set[int]:
    """Return the places of events, and those after them, that have the id of another click that was judged by several lists."""
    found = []
    if rejudged.earlier:
        found += [_with_ids(table.select(["event_id", "seq"]), rejudged.earlier) for table in sifted.fresh.tables]
    if rejudged.earlier or rejudged.fresh:
        found.append(_with_ids(_find_repeats(batch, sifted.gone), rejudged.earlier | rejudged.fresh))
    places = [seq for table in found for seq in table["seq"].to_pylist()]
    return {*places, *(seq + 1 for seq in places)}


def _find_repeats(batch: Batch, gone: Flags) -> pa.Table:
    """Return event_id, row, seq of a batch's repeats."""
    tables = [table.select(["event_id", "row", "seq"]) for table in batch.tables]
    return pa.concat_tables([table.filter(pa.array(flags)) for table, flags in zip(tables, cut(gone, tables), strict=True)])


def _with_ids(events: pa.Table, ids: Iterable[str | None]) -> pa.Table:
    return events.filter(pc.is_in(events["event_id"], value_set=pa.array(list(ids), pa.string())))


def _seqs(batch: Batch) -> list[Int64s]:
    return [*(table["seq"].to_numpy() for table in batch.tables), batch.reject_seq]


def _find_seen(feeds: Feeds, asked: pa.Table, rules: CountingRules, known: KeySet, recent: Recent) -> Flags:
    """Say of the events and then the rejects whose id is occupied."""
    keys = asked["key"].to_numpy()
    found = np.zeros(len(keys), np.bool_)
    maybe = known.contains(keys).nonzero()[0]
    if not len(maybe):
        return found
    oldest_us = asked["arrival_us"].to_numpy() - rules.retention_us
    is_recent = _find_recent(asked, maybe, oldest_us, recent.events)
    hits = maybe[is_recent]
    if not is_recent.all():
        recent.show_unwritten(feeds, recent.events)
        hits = np.concatenate([hits, _look_up(feeds, asked, maybe[~is_recent], oldest_us)])
    refused = hits[recent.quarantined.ids.contains(keys[hits])]
    if len(refused):
        ids = asked["event_id"]
        free = pa.array(quarantine.find_free(feeds, ids.take(pa.array(refused))), pa.string())
        hits = hits[~pc.is_in(ids.take(pa.array(hits)), value_set=free).to_numpy()]
    found[hits] = True
    return found


def _find_recent(asked: pa.Table, maybe: Int64s, oldest_us: Int64s, recent: RecentRows) -> Flags:
    """Flag which of the rows `maybe` of `asked` are among the events seen last, not before `oldest_us` (one a row of it)."""
    found = np.zeros(len(maybe), np.bool_)
    places, events = recent.find(asked["key"].to_numpy()[maybe])
    if events is not None:
        rows = maybe[places]
        equal = pc.equal(events["event_id"], asked["event_id"].take(pa.array(rows)))
        same = pc.fill_null(equal, False).to_numpy()  # a reject without an id has a key too
        found[places[same & (events["ts_us"].to_numpy() >= oldest_us[rows])]] = True
    return found


def _look_up(feeds: Feeds, asked: pa.Table, maybe: Int64s, oldest_us: Int64s) -> Int64s:
    """Return which of the rows `maybe` of `asked` are in `seen`, not before `oldest_us` (one a row of it).

    A repeat has its event's own time, so that is where it is looked for first; what is not there is looked for everywhere.
    """
    chosen = asked.select(["event_id", "key"]).take(pa.array(maybe))
    wanted = chosen.append_column("row", pa.array(maybe)).append_column("oldest_us", pa.array(oldest_us[maybe]))
    ts_us = asked["ts_us"].to_numpy()[maybe]
    hits, rest = [], np.ones(len(wanted), np.bool_)
    for rows in group_times(ts_us):
        hits.append(_search(feeds, wanted.take(pa.array(rows)), int(ts_us[rows].min()), int(ts_us[rows].max())))
        rest &= ~np.isin(wanted["row"].to_numpy(), hits[-1])
    if rest.any():
        hits.append(_search(feeds, wanted.filter(pa.array(rest)), 0, MAX_TS_US))
    return np.concatenate(hits)


def _search(feeds: Feeds, wanted: pa.Table, low_us: int, high_us: int) -> Int64s:
    found = feeds.look_up(FIND_SEEN, {"low": low_us, "high": high_us}, intake=wanted).fetchnumpy()["row"]
    return np.asarray(found, np.int64)


def _repeated(events: pa.Table, gone: Flags, retention_us: int) -> Flags:
    """Flag the rows whose event_id stands earlier in the batch, within the retention; `gone` are repeats already."""
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
    # Nearly always the first one stands, and all that share its key are its repeats.
    if (gone[rows[later]] | (same & ~gone[rows[first]] & (ts_us[first] >= oldest_us[later]))).all():
        repeats[rows[later]] = True
        return repeats
    standing: dict[str, tuple[int, bool]] = {}
    columns = (rows, ids.to_numpy(zero_copy_only=False), ts_us, oldest_us, gone[rows])
    for row, event_id, at_us, since_us, is_gone in zip(*(column.tolist() for column in columns), strict=True):
        before = standing.get(event_id)
        repeats[row] = is_repeat = before is not None and not before[1] and before[0] >= since_us
        if before is None or not (is_gone or is_repeat):
            standing[event_id] = at_us, is_gone
    return repeats


def _find_shared(events: pa.Table) -> Int64s:
    """Return the rows whose key is another row's too, by key and then in the order of the log."""
    keys = events["key"].to_numpy()
    order = keys.argsort()
    ascending = keys[order]
    again = ascending[1:] == ascending[:-1]
    rows: Int64s = order[np.append(again, False) | np.append(False, again)] if again.any() else order[:0]
    return rows[np.lexsort((events["seq"].to_numpy()[rows], keys[rows]))]


def _find_outlived(tables: Sequence[pa.Table], batch: Batch, retention_us: int) -> Flags:
    """Flag the rejects that came after an event of their id in the batch (`tables`), when it was older than the retention."""
    found = np.zeros(len(batch.rejects), np.bool_)
    if not retention_us or not len(found):
        return found
    ids = pa.array({reject.event_id for reject in batch.rejects}, pa.string()).drop_null()
    events = pa.concat_tables([table.select(["event_id", "seq", "ts_us"]) for table in tables])
    same = events.filter(pc.is_in(events["event_id"], value_set=ids))
    columns = (column.to_pylist() for column in same.columns)
    standing = {event_id: (seq, ts_us) for event_id, seq, ts_us in zip(*columns, strict=True)}
    for row, reject in enumerate(batch.rejects):
        seq, ts_us = standing.get(reject.event_id, NEVER)
        found[row] = seq < batch.reject_seq[row] and ts_us < batch.reject_arrival_us[row] - retention_us
    return found
