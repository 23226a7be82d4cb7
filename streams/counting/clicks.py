"""Clicks: the candidates of attribution, the clicks that it counted or refused, and the lists that it looks up."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting.connection import ShardConnection
from streams.counting.key_index import key_sql
from streams.events.line_spans import Flags
from streams.events.rules import CountingRules
from streams.events.time_ranges import group_times

CLICK = """
    ts_us BIGINT, key UBIGINT, impression_id VARCHAR, event_id VARCHAR, position BIGINT, item_norm VARCHAR,
    raw BLOB, log_offset BIGINT, line BIGINT"""
TABLES = f"""
CREATE TABLE clicks ({CLICK}, reason VARCHAR, delay_us BIGINT, session_id VARCHAR);
CREATE TABLE pending ({CLICK}, session_id VARCHAR);
"""
"""`key` is that of the impression id in the click's session (`streams.counting.key_index`), `reason` why a click was refused
(null: it counts), `delay_us` its time after the impression, 0 if it is before it."""

READ_REATTRIBUTED = f"""
SELECT -1, -1, {key_sql("event_id")}, ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, session_id
FROM reopened ORDER BY log_offset, line
"""
FIND_LISTS = """
WITH hits AS MATERIALIZED (
    SELECT w.impression_id AS wanted_id, i.key AS impression_key, i.impression_id, i.ts_us, i.day, i.query_norm,
        coalesce(i.items_norm, i.items) AS items
    FROM impressions i JOIN wanted w ON i.key = w.impression_key
    WHERE i.ts_us BETWEEN $low AND $high
)
SELECT impression_key, impression_id, ts_us, day, query_norm, items FROM hits WHERE impression_id = wanted_id
"""
# A list may be of any time: a query over keys alone finds its time, and then its texts are read from that range only.
FIND_TIMES = """
SELECT DISTINCT i.ts_us FROM impressions i JOIN wanted w ON i.key = w.impression_key WHERE i.ts_us BETWEEN $low AND $high
"""
FIND_CLICKED = """
WITH hits AS MATERIALIZED (
    SELECT w.impression_id AS wanted_id, c.key, c.impression_id, c.position
    FROM clicks c JOIN wanted w ON c.key = w.impression_key
    WHERE c.reason IS NULL AND c.ts_us BETWEEN $low AND $high
)
SELECT DISTINCT key, impression_id, position FROM hits WHERE impression_id = wanted_id
"""
INSERT = """
INSERT INTO clicks
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, reason, delay_us, session_id
FROM attributed
"""
# Versions of a click that are equal in all that attribution reads always have the same outcome: one of them is enough.
INSERT_UNLIKE = """
INSERT INTO clicks
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, reason, delay_us, session_id
FROM attributed ANTI JOIN (
    SELECT key AS of_list, ts_us AS at_us, impression_id AS list_id, event_id AS click_id, position AS place, item_norm AS item
    FROM clicks WHERE ts_us BETWEEN $low AND $high AND reason IS NOT NULL
) ON key = of_list AND ts_us = at_us AND impression_id = list_id AND event_id = click_id AND position = place
    AND item_norm IS NOT DISTINCT FROM item
"""
DELETE_REFUSED = """
DELETE FROM clicks WHERE reason IS NOT NULL AND (event_id, session_id) IN (SELECT (event_id, session_id) FROM repaired)
"""
WANTED_SCHEMA = pa.schema([("impression_key", pa.uint64()), ("impression_id", pa.string())])
WANTED = WANTED_SCHEMA.names
"""The columns that say which lists are wanted."""
ListId = tuple[int, str]
"""Which list: the key and the impression id."""

COLUMNS = ["ts_us", *WANTED, "event_id", "position", "item_norm", "raw", "log_offset", "line", "session_id"]
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
        ("session_id", pa.string()),
    ]
)
ATTRIBUTED = pa.schema([*SCHEMA, ("reason", pa.string()), ("delay_us", pa.int64())])


class Candidate(NamedTuple):
    """A click to be attributed.

    `row` is the rowid that it had in `pending` (-1: none), `seq` its log order in the batch (-1: from before the batch), `key`
    that of the impression id and `event_key` that of the event id, both in its session.
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
    session_id: str

    @property
    def list_id(self) -> ListId:
        """Which list it is on: that of its impression id in its own session."""
        return self.key, self.impression_id

    @property
    def id(self) -> tuple[str, str]:
        """Its event id and session."""
        return self.event_id, self.session_id


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


def find_lists_between(connection: ShardConnection, wanted: pa.Table, low_us: int, high_us: int) -> pa.Table:
    """Return the lists in `wanted` (WANTED) with low_us <= ts <= high_us, as `streams.counting.matching.COLUMNS`."""
    return connection.look_up_table(FIND_LISTS, {"low": low_us, "high": high_us}, wanted=wanted)


def find_scattered_lists(connection: ShardConnection, wanted: pa.Table, low_us: int, high_us: int) -> list[pa.Table]:
    """Return the same in several tables; faster when the impressions are few and far apart in a long range."""
    if not len(wanted):
        return []
    times = connection.look_up(FIND_TIMES, {"low": low_us, "high": high_us}, wanted=wanted).fetchnumpy()["ts_us"]
    groups = [times[rows] for rows in group_times(times)]
    return [find_lists_between(connection, wanted, int(group.min()), int(group.max())) for group in groups]


def find_clicked(connection: ShardConnection, lists: pa.Table, rules: CountingRules) -> set[tuple[int, str, int]]:
    """Return key, impression_id, position of the clicks already counted on these lists (WANTED, ts_us)."""
    found: set[tuple[int, str, int]] = set()
    ts_us = lists["ts_us"].to_numpy()
    for rows in group_times(ts_us):
        times = ts_us[rows]
        span = {"low": int(times.min()) - rules.click_lead_us, "high": int(times.max()) + rules.attribution_window_us}
        wanted = lists.select(WANTED).take(pa.array(rows))
        found |= set(connection.look_up(FIND_CLICKED, span, wanted=wanted).fetchall())
    return found


def to_wanted(candidates: Sequence[Candidate]) -> pa.Table:
    """Return which lists these clicks are on (WANTED)."""
    return to_table([click.list_id for click in candidates], WANTED_SCHEMA)


def is_among(keys: pa.ChunkedArray, impression_ids: pa.ChunkedArray, lists: pa.Table) -> pa.ChunkedArray:
    """Return for each key and impression id whether it is that of one of these lists (WANTED)."""
    wanted_keys, wanted_ids = (lists[name].combine_chunks() for name in WANTED)
    return pc.and_(pc.is_in(keys, value_set=wanted_keys), pc.is_in(impression_ids, value_set=wanted_ids))


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
        (*click.id, click.impression_id, click.ts_us, click.position, click.item_norm): (*click[3:], reason, delay)
        for click, reason, delay in reversed(refused)
    }
    rows = list(distinct.values())
    for chosen in group_times(np.array([row[0] for row in rows], np.int64)):
        some = to_table([rows[row] for row in chosen.tolist()], ATTRIBUTED)
        times = some["ts_us"].to_numpy()
        connection.change(INSERT_UNLIKE, {"low": int(times.min()), "high": int(times.max())}, attributed=some)


def delete_refused(connection: ShardConnection, repaired: pa.Table) -> None:
    """Delete the refused versions of events (event_id, session_id) of which a good version counts now."""
    connection.change(DELETE_REFUSED, repaired=repaired)


def to_table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table. For few rows, all columns at once are three times as fast as one after the other."""
    return pa.Table.from_struct_array(pa.array(rows, pa.struct(list(schema))))
