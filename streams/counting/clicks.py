"""Clicks: the candidates of attribution, the clicks that it counted or refused, and the lists that it looks up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from streams.counting.connection import ShardConnection
from streams.events.line_spans import Flags
from streams.events.time_ranges import group_times

CLICK = """
    ts_us BIGINT, key UBIGINT, impression_id VARCHAR, event_id VARCHAR, position BIGINT, item_norm VARCHAR,
    raw BLOB, log_offset BIGINT, line BIGINT"""
TABLES = f"CREATE TABLE clicks ({CLICK}, reason VARCHAR, delay_us BIGINT); CREATE TABLE pending ({CLICK});"
"""`key` is hash(impression_id), `reason` why a click was refused (null: it counts), `delay_us` its time after the impression."""

READ_REATTRIBUTED = """
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
# A list may be of any time: a query over keys alone finds its time, and then its texts are read from that range only.
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
INSERT = """
INSERT INTO clicks
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, reason, delay_us FROM attributed
"""
# Versions of a click that are equal in all that attribution reads always have the same outcome: one of them is enough.
INSERT_UNLIKE = """
INSERT INTO clicks
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, reason, delay_us
FROM attributed ANTI JOIN (
    SELECT key AS of_list, ts_us AS at_us, impression_id AS list_id, event_id AS click_id, position AS place, item_norm AS item
    FROM clicks WHERE ts_us BETWEEN $low AND $high AND reason IS NOT NULL
) ON key = of_list AND ts_us = at_us AND impression_id = list_id AND event_id = click_id AND position = place
    AND item_norm IS NOT DISTINCT FROM item
"""
DELETE_REFUSED = "DELETE FROM clicks WHERE reason IS NOT NULL AND event_id IN (SELECT unnest($ids::VARCHAR[]))"

COLUMNS = ["ts_us", "impression_key", "impression_id", "event_id", "position", "item_norm", "raw", "log_offset", "line"]
"""The columns of a batch's clicks that are stored, in the order of SCHEMA."""
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
ATTRIBUTED = pa.schema([*SCHEMA, ("reason", pa.string()), ("delay_us", pa.int64())])


class Candidate(NamedTuple):
    """A click to be attributed.

    `row` is the rowid that it had in `pending` (-1: none), `seq` its log order in the batch (-1: from before the batch), `key` is
    hash(impression_id).
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


class ShownList(NamedTuple):
    """The list that a click may belong to: its row in `Lists.table`, its time and day, its query and items normalised."""

    row: int
    ts_us: int
    day: date
    query_norm: str
    items: Sequence[str]


def select_candidates(fresh: pa.Table, chosen: Flags) -> list[Candidate]:
    """Return the chosen ones of a batch's clicks, in log order."""
    if not chosen.any():
        return []
    columns = fresh.select(["seq", "key", *COLUMNS]).take(pa.array(chosen.nonzero()[0])).columns
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return sorted((Candidate(-1, *row) for row in rows), key=lambda click: click.seq)


def read_reattributed(connection: ShardConnection) -> list[Candidate]:
    """Return the clicks in the temporary table `reopened`, which `streams.counting.impressions` retracted."""
    return [Candidate(*row) for row in connection.execute(READ_REATTRIBUTED).fetchall()]


def find_lists_between(connection: ShardConnection, impression_ids: pa.Array, low_us: int, high_us: int) -> pa.Table:
    """Return the lists of these impression ids with low_us <= ts <= high_us, as `streams.counting.matching.COLUMNS`."""
    wanted = pa.table({"impression_id": impression_ids})
    return connection.look_up_table(FIND_LISTS, {"low": low_us, "high": high_us}, wanted=wanted)


def find_scattered_lists(connection: ShardConnection, impression_ids: pa.Array, low_us: int, high_us: int) -> list[pa.Table]:
    """Return the same in several tables; faster when the impressions are few and far apart in a long range."""
    if not len(impression_ids):
        return []
    span = {"low": low_us, "high": high_us}
    times = connection.look_up(FIND_TIMES, span, wanted=pa.table({"impression_id": impression_ids})).fetchnumpy()["ts_us"]
    groups = [times[rows] for rows in group_times(times)]
    return [find_lists_between(connection, impression_ids, int(group.min()), int(group.max())) for group in groups]


def find_clicked(connection: ShardConnection, lists: pa.Table, window_us: int) -> set[tuple[str, int]]:
    """Return (impression_id, position) of the clicks already counted on these lists (impression_id, ts_us)."""
    found: set[tuple[str, int]] = set()
    ts_us = lists["ts_us"].to_numpy()
    for rows in group_times(ts_us):
        times = ts_us[rows]
        span = {"low": int(times.min()), "high": int(times.max()) + window_us}
        wanted = lists.select(["impression_id"]).take(pa.array(rows))
        found |= set(connection.look_up(FIND_CLICKED, span, wanted=wanted).fetchall())
    return found


def store_clicks(
    connection: ShardConnection, clicks: Sequence[tuple[Candidate, str | None, int]], fast_path: pa.Table | None = None
) -> None:
    """Store clicks, each with its reason (None: it counts) and its delay in microseconds.

    `fast_path` are further clicks that count, as columns of a batch with `delay_us`.
    """
    tables = []
    if fast_path is not None and len(fast_path):
        columns = [*fast_path.select(COLUMNS).columns, pa.nulls(len(fast_path), pa.string()), fast_path["delay_us"]]
        tables.append(pa.Table.from_arrays(columns, schema=ATTRIBUTED))
    if clicks:
        tables.append(to_table([(*click[3:], reason, delay) for click, reason, delay in clicks], ATTRIBUTED))
    if tables:
        connection.defer(INSERT, "attributed", pa.concat_tables(tables))


def store_unlike(connection: ShardConnection, refused: Sequence[tuple[Candidate, str, int]]) -> None:
    """Store refused clicks, except where an equal version of the click is stored already."""
    distinct = {
        (click.event_id, click.impression_id, click.ts_us, click.position, click.item_norm): (*click[3:], reason, delay)
        for click, reason, delay in reversed(refused)
    }
    rows = list(distinct.values())
    for chosen in group_times(np.array([row[0] for row in rows], np.int64)):
        some = to_table([rows[row] for row in chosen.tolist()], ATTRIBUTED)
        times = some["ts_us"].to_numpy()
        connection.change(INSERT_UNLIKE, {"low": int(times.min()), "high": int(times.max())}, attributed=some)


def delete_refused(connection: ShardConnection, event_ids: Sequence[str]) -> None:
    """Delete the refused versions of events of which a good version counts now."""
    connection.change(DELETE_REFUSED, {"ids": list(event_ids)})


def to_table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table. For few rows, all columns at once are three times as fast as one after the other."""
    return pa.Table.from_struct_array(pa.array(rows, pa.struct(list(schema))))
