"""Clicks: what attribution judges, the ones that were judged, and the lists they are judged by."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streams.counting.connection import Feeds
from streams.counting.time_ranges import group_times
from streams.events.line_spans import Flags

CLICK = """
    ts_us BIGINT, key UBIGINT, impression_id VARCHAR, event_id VARCHAR, position BIGINT, item_norm VARCHAR,
    raw BLOB, log_offset BIGINT, line BIGINT"""
TABLES = f"CREATE TABLE clicks ({CLICK}, reason VARCHAR, delay_us BIGINT); CREATE TABLE pending ({CLICK});"
"""`key` is hash(impression_id), `reason` null where the click counts, else why not, `delay_us` its time after the impression."""

READ_REOPENED = """
SELECT -1, -1, hash(event_id), ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line
FROM reopened ORDER BY log_offset, line
"""
FIND_LISTS = """
WITH hits AS MATERIALIZED (
    SELECT w.impression_id AS wanted_id, i.key AS impression_key, i.impression_id, i.ts_us, i.day, i.query_norm,
        coalesce(i.items_norm, i.items) AS items
    FROM impressions i JOIN wanted w ON i.key = hash(w.impression_id)
    WHERE i.ts_us BETWEEN $low AND $high
)
SELECT impression_key, impression_id, ts_us, day, query_norm, items FROM hits WHERE impression_id = wanted_id
"""
# Where a list may be of any time, a look at the keys alone tells its time, and then its texts are read from there alone.
FIND_TIMES = """
SELECT DISTINCT i.ts_us FROM impressions i JOIN wanted w ON i.key = hash(w.impression_id) WHERE i.ts_us BETWEEN $low AND $high
"""
FIND_CLICKED = """
WITH hits AS MATERIALIZED (
    SELECT w.impression_id AS wanted_id, c.impression_id, c.position
    FROM clicks c JOIN wanted w ON c.key = hash(w.impression_id)
    WHERE c.reason IS NULL AND c.ts_us BETWEEN $low AND $high
)
SELECT DISTINCT impression_id, position FROM hits WHERE impression_id = wanted_id
"""
KEEP = """
INSERT INTO clicks
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, reason, delay_us FROM judged
"""
# What is the same in all that a click is judged by will always be judged the same: of such versions one is enough.
KEEP_UNLIKE = """
INSERT INTO clicks
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, reason, delay_us
FROM judged ANTI JOIN (
    SELECT key AS of_list, ts_us AS at_us, impression_id AS list_id, event_id AS click_id, position AS place, item_norm AS item
    FROM clicks WHERE ts_us BETWEEN $low AND $high AND reason IS NOT NULL
) ON key = of_list AND ts_us = at_us AND impression_id = list_id AND event_id = click_id AND position = place
    AND item_norm IS NOT DISTINCT FROM item
"""
FORGET_REFUSED = "DELETE FROM clicks WHERE reason IS NOT NULL AND event_id IN (SELECT unnest($ids::VARCHAR[]))"

COLUMNS = ["ts_us", "impression_key", "impression_id", "event_id", "position", "item_norm", "raw", "log_offset", "line"]
"""What is kept of a batch's clicks, in the order of SCHEMA."""
SCHEMA = pa.schema(
    [
        ("ts_us", pa.int64()),
        ("key", pa.uint64()),
        ("impression_id", pa.string()),
        ("event_id", pa.string()),
        ("position", pa.int64()),
        ("item_norm", pa.string()),
        ("raw", pa.binary()),
        ("log_offset", pa.int64()),
        ("line", pa.int64()),
    ]
)
JUDGED = pa.schema([*SCHEMA, ("reason", pa.string()), ("delay_us", pa.int64())])


class Candidate(NamedTuple):
    """A click to be judged.

    `row` was its rowid in `pending` (-1: not there), `seq` its log order in the batch (-1: before), `key` that of its list.
    """

    row: int
    seq: int
    event_key: int
    ts_us: int
    key: int
    impression_id: str
    event_id: str
    position: int
    item_norm: str | None
    raw: bytes
    log_offset: int
    line: int


class Shown(NamedTuple):
    """What a click is judged by: an impression's row among the lists at hand, its time, day, and normalised texts."""

    row: int
    ts_us: int
    day: date
    query_norm: str
    items: Sequence[str]


def read_fresh(fresh: pa.Table, chosen: Flags) -> list[Candidate]:
    """Return some of a batch's clicks in log order."""
    if not chosen.any():
        return []
    columns = fresh.select(["seq", "key", *COLUMNS]).take(pa.array(chosen.nonzero()[0])).columns
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return sorted((Candidate(-1, *row) for row in rows), key=lambda click: click.seq)


def read_reopened(feeds: Feeds) -> list[Candidate]:
    """Return the clicks in the relation `reopened`, which `streams.counting.impressions` took back."""
    return [Candidate(*row) for row in feeds.execute(READ_REOPENED).fetchall()]


def find_lists_between(feeds: Feeds, impression_ids: pa.Array, low_us: int, high_us: int) -> pa.Table:
    """Return `streams.counting.matching.COLUMNS` of these impressions shown in low_us <= ts <= high_us."""
    wanted = pa.table({"impression_id": impression_ids})
    return feeds.look_up_table(FIND_LISTS, {"low": low_us, "high": high_us}, wanted=wanted)


def find_scattered_lists(feeds: Feeds, impression_ids: pa.Array, low_us: int, high_us: int) -> list[pa.Table]:
    """Return the same in several tables, where few impressions lie far from each other in a long time."""
    if not len(impression_ids):
        return []
    span = {"low": low_us, "high": high_us}
    times = feeds.look_up(FIND_TIMES, span, wanted=pa.table({"impression_id": impression_ids})).fetchnumpy()["ts_us"]
    groups = [times[rows] for rows in group_times(times)]
    return [find_lists_between(feeds, impression_ids, int(group.min()), int(group.max())) for group in groups]


def find_clicked(feeds: Feeds, lists: pa.Table, window_us: int) -> set[tuple[str, int]]:
    """Return (impression_id, position) of what was clicked before on these lists (impression_id, ts_us)."""
    found: set[tuple[str, int]] = set()
    ts_us = lists["ts_us"].to_numpy()
    for rows in group_times(ts_us):
        times = ts_us[rows]
        span = {"low": int(times.min()), "high": int(times.max()) + window_us}
        wanted = lists.select(["impression_id"]).take(pa.array(rows))
        found |= set(feeds.look_up(FIND_CLICKED, span, wanted=wanted).fetchall())
    return found


def keep(feeds: Feeds, judged: Sequence[tuple[Candidate, str | None, int]], fitting: pa.Table | None = None) -> None:
    """Keep clicks that were judged, each with its reason and its delay in microseconds.

    `fitting` are others that count, as columns of a batch with `delay_us`.
    """
    tables = []
    if fitting is not None and len(fitting):
        columns = [*fitting.select(COLUMNS).columns, pa.nulls(len(fitting), pa.string()), fitting["delay_us"]]
        tables.append(pa.Table.from_arrays(columns, schema=JUDGED))
    if judged:
        tables.append(to_table([(*click[3:], reason, delay) for click, reason, delay in judged], JUDGED))
    if tables:
        feeds.add(KEEP, "judged", pa.concat_tables(tables))


def keep_unlike(feeds: Feeds, refused: Sequence[tuple[Candidate, str, int]]) -> None:
    """Keep refused clicks as `keep` does, but for those of which a version that is judged alike is kept."""
    distinct = {
        (click.event_id, click.impression_id, click.ts_us, click.position, click.item_norm): (*click[3:], reason, delay)
        for click, reason, delay in reversed(refused)
    }
    rows = list(distinct.values())
    for chosen in group_times(np.array([row[0] for row in rows], np.int64)):
        some = to_table([rows[row] for row in chosen.tolist()], JUDGED)
        times = some["ts_us"].to_numpy()
        feeds.change(KEEP_UNLIKE, {"low": int(times.min()), "high": int(times.max())}, judged=some)


def forget_refused(feeds: Feeds, event_ids: Sequence[str]) -> None:
    """Forget refused versions of events of which a good version counts now."""
    feeds.change(FORGET_REFUSED, {"ids": list(event_ids)})


def to_table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table. All columns at once, for a few rows that is three times as fast as one after the other."""
    return pa.Table.from_struct_array(pa.array(rows, pa.struct(list(schema))))
