"""Matching: finds the list of each click, and on a fast path over whole columns the clicks that certainly count.

Nearly all clicks do. The others, and all clicks whose outcome depends on the order of arrival, are attributed one by one in
`streams.counting.attribution`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting import clicks
from streams.counting.clicks import WANTED, ListId
from streams.counting.connection import ShardConnection
from streams.counting.key_index import KeyArray, KeySet
from streams.counting.recent_rows import RecentState
from streams.events.line_spans import Flags, Int64s
from streams.events.rules import DAY_US, HOUR_US, CountingRules
from streams.events.schema import MAX_TS_US
from streams.events.time_ranges import group_times

COLUMNS = [*WANTED, "ts_us", "day", "query_norm", "items"]
NEAR_US = HOUR_US // 2
"""The list of a click is looked up in so long a time around it first."""
FAR_US = 2 * DAY_US
"""Then in so long a time before it: a click after the attribution window is seldom days after it."""


@dataclass(frozen=True, slots=True)
class Lists:
    """The lists to which a batch's clicks may belong (COLUMNS; items normalised), the batch's `own` ones first.

    For the first `tracked` lists `RecentState.clicked` has all positions clicked so far. `row_of_click` is the row in `table` of
    the list of each of the batch's clicks, -1 if it is not here.
    """

    own: pa.Table
    table: pa.Table
    tracked: int
    row_of_click: Int64s

    def stored_ids(self) -> set[ListId]:
        """Return which lists are from before the batch."""
        return set(_list_ids(self.table.slice(len(self.own))))


@dataclass(frozen=True, slots=True)
class FastPath:
    """For each click: whether it certainly counts, and if so the row of its list and its delay (microseconds) after it."""

    fits: Flags
    row: Int64s
    delay_us: Int64s


def find_lists(
    connection: ShardConnection,
    canonical: pa.Table,
    fresh: pa.Table,
    others: pa.Table,
    known_keys: KeySet,
    recent: RecentState,
) -> Lists:
    """Return the lists of canonical impressions, of the batch's clicks (`fresh`), and the lists `others` (WANTED)."""
    own = _own_lists(canonical)
    table = _concat_lists([own, *_find_tracked(recent, fresh["impression_key"].to_numpy())])
    tracked, row_of_click = len(table), _find_list_rows(fresh, table)
    missing = _find_missing(fresh, row_of_click, known_keys)
    if len(missing) or len(others):
        clicked = fresh.select([*WANTED, "ts_us"]).take(pa.array(missing))
        found = _find_stored(connection, clicked, others, table, recent)
        table = _concat_lists([table, *found])
        row_of_click = _find_list_rows(fresh, table)
    return Lists(own, table, tracked, row_of_click)


def _own_lists(canonical: pa.Table) -> pa.Table:
    norms = canonical["items_norm"].combine_chunks()
    items = canonical["items"].combine_chunks()
    items = items if norms.null_count == len(norms) else pc.if_else(pc.is_valid(norms), norms, items)
    return canonical.select(COLUMNS[:-1]).append_column("items", items)


def _concat_lists(tables: Sequence[pa.Table]) -> pa.Table:
    """Return lists as one table of one chunk."""
    schema = tables[0].schema
    return pa.concat_tables([table if table.schema == schema else table.cast(schema) for table in tables]).combine_chunks()


def _find_list_rows(fresh: pa.Table, lists: pa.Table) -> Int64s:
    """Return for each click the row of its list, -1 if it is not among these."""
    if not len(fresh) or not len(lists):
        return np.full(len(fresh), -1)
    wanted, keys = fresh["impression_key"].to_numpy(), lists["impression_key"].to_numpy()
    order = keys.argsort()
    row = order.take(keys[order].searchsorted(wanted), mode="clip")
    is_key = keys[row] == wanted
    same = pc.equal(fresh["impression_id"], lists["impression_id"].take(pa.array(row))).to_numpy()
    if not same[is_key].all():  # different texts of one key
        rows = {name: number for number, name in enumerate(_list_ids(lists))}
        return np.array([rows.get(name, -1) for name in _list_ids(fresh)], np.int64)
    return np.where(is_key, row, -1)


def _list_ids(rows: pa.Table) -> Iterator[ListId]:
    """Yield which list each row is, or is of."""
    return zip(*(rows[name].to_pylist() for name in WANTED), strict=True)


def _find_missing(fresh: pa.Table, row_of_click: Int64s, known_keys: KeySet) -> Int64s:
    """Return the rows of the clicks whose list is not found yet, and may be in the file."""
    rows = (row_of_click < 0).nonzero()[0]
    return rows[known_keys.contains(fresh["impression_key"].to_numpy()[rows])] if len(rows) else rows


def _find_stored(
    connection: ShardConnection, clicked: pa.Table, others: pa.Table, found: pa.Table, recent: RecentState
) -> list[pa.Table]:
    """Return from the file the lists of these clicks and the lists `others`, except those already found."""
    wanted = _exclude(pa.concat_tables([clicked.select(WANTED), others]), found)
    if not len(wanted):
        return []
    recent.make_unwritten_visible(connection, recent.lists, recent.clicked)
    near = _find_near(connection, clicked)
    return near + _find_far(connection, _exclude(wanted, *near), clicked["ts_us"])


def _exclude(rows: pa.Table, *lists: pa.Table) -> pa.Table:
    """Return the rows whose list is not in any of these tables."""
    for table in lists:
        if len(rows) and len(table):
            rows = rows.filter(pc.invert(clicks.is_among(rows["impression_key"], rows["impression_id"], table)))
    return rows


def _find_tracked(recent: RecentState, keys: KeyArray) -> list[pa.Table]:
    """Return the recent lists with these keys of which all clicked positions are recent too."""
    _, lists = recent.lists.find(np.unique(keys))
    if lists is None:
        return []
    is_tracked = lists["batch"].to_numpy() >= recent.clicked.complete_from
    lists = lists.select(COLUMNS)
    return [lists if is_tracked.all() else lists.filter(pa.array(is_tracked))]


def _find_near(connection: ShardConnection, clicked: pa.Table) -> list[pa.Table]:
    """Return the lists of these clicks that were shown shortly before them, as nearly all were, or shortly after."""
    ts_us = clicked["ts_us"].to_numpy()
    groups = group_times(ts_us)[:1]
    wanted = [_distinct(clicked.take(pa.array(rows))) for rows in groups]
    return [
        clicks.find_lists_between(connection, some, int(ts_us[rows].min()) - NEAR_US, int(ts_us[rows].max()) + NEAR_US)
        for some, rows in zip(wanted, groups, strict=True)
    ]


def _distinct(rows: pa.Table) -> pa.Table:
    """Return which lists these rows are of (WANTED), each once."""
    return rows.select(WANTED).group_by(WANTED, use_threads=False).aggregate([])


def _find_far(connection: ShardConnection, wanted: pa.Table, clicked_us: pa.ChunkedArray) -> list[pa.Table]:
    """Return these lists from any time: first those of the days before the clicks, then the rest from the whole file."""
    spans = [(0, MAX_TS_US)]
    if len(clicked_us):
        times = pc.min_max(clicked_us).as_py()
        spans.insert(0, (times["min"] - FAR_US, times["max"] + NEAR_US))
    found: list[pa.Table] = []
    for low_us, high_us in spans:
        some = _distinct(_exclude(wanted, *found))
        found += clicks.find_scattered_lists(connection, some, low_us, high_us)
    return found


def find_fast_path(fresh: pa.Table, lists: Lists, rules: CountingRules, last_arrival_us: int) -> FastPath:
    """Find the clicks that fit their list, whenever within their waiting time it arrived."""
    ts_us, position = fresh["ts_us"].to_numpy(), fresh["position"].to_numpy()
    if not len(ts_us) or not len(lists.table):
        return no_fast_path(fresh)
    row = np.maximum(lists.row_of_click, 0)
    delay_us = ts_us - lists.table["ts_us"].to_numpy()[row]
    items = lists.table["items"].combine_chunks()
    starts = items.offsets.to_numpy()
    first = starts[row]
    inside = position < starts[row + 1] - first
    shown = items.values.take(pa.array(np.where(inside, first + position, first)))
    same = pc.fill_null(pc.equal(fresh["item_norm"].combine_chunks(), shown), True).to_numpy(zero_copy_only=False)
    window_us = rules.attribution_window_us
    in_time = (delay_us >= -rules.click_lead_us) & (delay_us <= window_us) & (ts_us + window_us >= last_arrival_us)
    return FastPath((lists.row_of_click >= 0) & in_time & inside & same, row, np.maximum(delay_us, 0))


def no_fast_path(fresh: pa.Table) -> FastPath:
    """Return that every click is to be attributed one by one."""
    nothing = np.zeros(len(fresh), np.int64)
    return FastPath(nothing.astype(np.bool_), nothing, nothing)


def find_new_positions(
    connection: ShardConnection,
    lists: Lists,
    fresh: pa.Table,
    fast_path: FastPath,
    others: Sequence[tuple[int, int]],
    rules: CountingRules,
    recent: RecentState,
) -> pa.Table:
    """Return day, query_norm, item_norm, position of each position of a list that is clicked for the first time.

    `others` are (row of `lists`, position) of counted clicks that are not on the fast path. New positions are added to
    `recent.clicked`.
    """
    cells = fast_path.row[fast_path.fits] << 32 | fresh["position"].to_numpy()[fast_path.fits]
    if others:
        cells = np.concatenate([cells, np.array([row << 32 | position for row, position in others], np.int64)])
    cells = np.unique(cells)
    cells = cells[~np.isin(cells, _find_clicked(connection, lists, cells >> 32, rules, recent), kind="sort")]
    rows, position = cells >> 32, cells & 0xFFFFFFFF
    items = lists.table["items"].combine_chunks()
    found = lists.table.select(["impression_id", "day", "query_norm"]).take(pa.array(rows))
    item_norm = items.values.take(pa.array(items.offsets.to_numpy()[rows] + position))
    positions = pa.array(position, pa.int32())
    keys = lists.table["impression_key"].to_numpy()[rows]
    recent.clicked.add(keys, pa.table({"impression_id": found["impression_id"], "position": positions}), recent.batch)
    columns = {"day": found["day"], "query_norm": found["query_norm"], "item_norm": item_norm, "position": positions}
    return pa.table(columns)


def _find_clicked(connection: ShardConnection, lists: Lists, rows: Int64s, rules: CountingRules, recent: RecentState) -> Int64s:
    """Return the positions clicked before on these lists (rows in ascending order), as row << 32 | position."""
    rows = np.unique(rows[rows.searchsorted(len(lists.own)) :])
    if not len(rows):
        return rows
    clicked = _find_recent_clicked(recent, lists.table, rows)
    if rows[-1] < lists.tracked:
        return clicked
    recent.make_unwritten_visible(connection, recent.clicked)
    untracked = rows[rows >= lists.tracked]
    asked = lists.table.take(pa.array(untracked))
    row_of = dict(zip(_list_ids(asked), untracked.tolist(), strict=True))
    found = clicks.find_clicked(connection, asked, rules)
    cells = [row_of[key, name] << 32 | position for key, name, position in found]
    return np.concatenate([clicked, np.array(cells, np.int64)])


def _find_recent_clicked(recent: RecentState, lists: pa.Table, rows: Int64s) -> Int64s:
    """Return in the same way the recent clicked positions of these lists."""
    of_list, cells = recent.clicked.find(lists["impression_key"].to_numpy()[rows])
    if cells is None:
        return of_list
    row = rows[of_list]
    same = pc.equal(cells["impression_id"], lists["impression_id"].take(pa.array(row))).to_numpy()
    clicked: Int64s = (row << 32 | cells["position"].to_numpy())[same]
    return clicked
