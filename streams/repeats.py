"""Repeats: an event id is counted once in a shard, however often it is delivered.

Every event that was taken in is in `seen`. An id is occupied while an event of it counts or waits; a click that was refused frees
its id, so that a repaired version is judged like a new event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import duckdb
import numpy as np
import pyarrow as pa

from streams import quarantine
from streams.events import Reason, Reject
from streams.intake import Batch, Flags, Int64s
from streams.rules import CountingRules

TABLES = """
CREATE TABLE seen (ts_us BIGINT, key UBIGINT, event_id VARCHAR);
"""
"""`key` is hash(event_id)."""

# Joining 64-bit keys first and comparing texts only among the hits reads an eighth of what a join on the texts does. An event
# older than the retention is as good as forgotten, even where its day still waits to be.
FIND_SEEN = """
WITH hits AS MATERIALIZED (
    SELECT i.row, i.event_id, s.event_id AS seen_id
    FROM seen s JOIN intake i ON s.key = hash(i.event_id) WHERE s.ts_us >= i.oldest_us
)
SELECT DISTINCT row FROM hits WHERE event_id = seen_id
"""
REMEMBER = "INSERT INTO seen SELECT ts_us, hash(event_id), event_id FROM fresh"


@dataclass(frozen=True, slots=True)
class Sifted:
    """A batch without its repeats (`fresh`), and the repeated events: event_id, raw, seq."""

    fresh: Batch
    repeats: pa.Table
    rejects_repeated: int


def drop_repeats(con: duckdb.DuckDBPyConnection, batch: Batch, rules: CountingRules, any_refused: bool) -> Sifted:
    """Tell the batch's new events from what this shard has taken in and from repeats inside it; remember the new ones.

    `any_refused` says whether the shard has refused clicks in quarantine.
    """
    events = pa.concat_tables([table.select(["event_id", "ts_us", "seq", "arrival_us"]) for table in batch.tables])
    known = _find_seen(con, events, batch, rules, any_refused)
    gone, rejects_gone = known[: len(events)] | _repeated(events), known[len(events) :]
    tables = list(batch.tables)
    repeats = pa.table({"event_id": [], "raw": [], "seq": []})
    if gone.any():
        bounds = np.cumsum([len(table) for table in tables])[:-1]
        flagged = list(zip(tables, np.split(gone, bounds), strict=True))
        repeats = pa.concat_tables([t.select(["event_id", "raw", "seq"]).filter(pa.array(flags)) for t, flags in flagged])
        tables = [t.filter(pa.array(~flags)) for t, flags in flagged]
        events = events.filter(pa.array(~gone))
    con.register("fresh", events.select(["event_id", "ts_us"]))
    con.execute(REMEMBER)
    con.unregister("fresh")
    kept = [reject for reject, is_gone in zip(batch.rejects, rejects_gone, strict=True) if not is_gone]
    fresh = replace(batch, queries=tables[0], impressions=tables[1], clicks=tables[2], rejects=kept)
    return Sifted(fresh, repeats, int(rejects_gone.sum()))


def find_conflicts(batch: Batch, sifted: Sifted, freed: list[Reject]) -> list[int]:
    """Return where (seq) a batch must be cut, because an event came again whose id was freed inside the batch.

    `freed` are the clicks that the batch sent to quarantine. Such a repeat is a repeat or not depending on whether it came before
    the refusal, which a batch as a whole does not tell; at the beginning of a batch it is clear. The same bytes again are refused
    again for the same reason, except an orphan.
    """
    if not freed or not (len(sifted.repeats) or batch.rejects):
        return []
    reasons = {reject.event_id: reject for reject in freed}
    first = min(int(seq.min()) for seq in _seqs(batch) if len(seq))
    found = {
        seq
        for event_id, raw, seq in zip(*(column.to_pylist() for column in sifted.repeats.columns), strict=True)
        if (reject := reasons.get(event_id)) and (raw != reject.raw or reject.reason is Reason.ORPHAN_CLICK)
    }
    found |= {int(seq) for r, seq in zip(batch.rejects, batch.reject_seq, strict=True) if r.event_id in reasons}
    return sorted(found - {first})


def _seqs(batch: Batch) -> list[Int64s]:
    return [*(table["seq"].to_numpy() for table in batch.tables), batch.reject_seq]


def _find_seen(con: duckdb.DuckDBPyConnection, events: pa.Table, batch: Batch, rules: CountingRules, any_refused: bool) -> Flags:
    """Say of the events and then the rejects whose id is occupied."""
    ids = pa.chunked_array([*events["event_id"].chunks, pa.array([r.event_id for r in batch.rejects], pa.string())])
    arrival = np.concatenate([events["arrival_us"].to_numpy(), batch.reject_arrival_us])
    table = pa.table({"row": np.arange(len(ids)), "event_id": ids, "oldest_us": arrival - rules.retention_us})
    con.register("intake", table)
    rows = [row for (row,) in con.execute(FIND_SEEN).fetchall()]
    con.unregister("intake")
    if rows and any_refused:
        hits = table.select(["row", "event_id"]).take(pa.array(rows, pa.int64()))
        con.register("intake", hits)
        free = quarantine.find_free(con)
        con.unregister("intake")
        rows = [row for row, name in zip(rows, hits["event_id"].to_pylist(), strict=True) if name not in free]
    found = np.zeros(len(ids), np.bool_)
    found[rows] = True
    return found


def _repeated(events: pa.Table) -> Flags:
    """Flag the rows whose event_id stands earlier in the batch."""
    names = events["event_id"].to_pylist()
    repeats = np.zeros(len(names), np.bool_)
    if len(set(names)) == len(names):
        return repeats
    first: set[str] = set()
    for row in np.argsort(events["seq"].to_numpy(), kind="stable").tolist():
        repeats[row] = names[row] in first
        first.add(names[row])
    return repeats
