"""Matching: which clicks plainly fit the list they belong to, told for whole columns at once.

Nearly all clicks do. What is left, and every click whose fate depends on what came when,
`streams.counting.attribution` judges singly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams.counting import clicks
from streams.counting.connection import Feeds
from streams.counting.key_index import Keys, KeySet
from streams.counting.recent_rows import Recent
from streams.counting.time_ranges import group_times
from streams.events.line_spans import Flags, Int64s
from streams.events.rules import DAY_US, HOUR_US
from streams.events.schema import MAX_TS_US

COLUMNS = ["impression_key", "impression_id", "ts_us", "day", "query_norm", "items"]
NEAR_US = HOUR_US // 2
"""Before a click its list is looked for first."""
FAR_US = 2 * DAY_US
"""Then so long before it: a click that comes after the attribution window seldom comes days after it."""


@dataclass(frozen=True, slots=True)
class Lists:
    """The lists by which a batch's clicks are judged (COLUMNS; items normalised): first the batch's `own`.

    Of the first `followed` lists memory has all positions that are clicked already. `place` is for each of the batch's clicks
    the row of its list, -1 where it is not here.
    """

    own: pa.Table
    table: pa.Table
    followed: int
    place: Int64s

    def on_file(self) -> set[str]:
        """Return the ids of those that came before the batch."""
        return set(self.table["impression_id"].slice(len(self.own)).to_pylist())


@dataclass(frozen=True, slots=True)
class Plain:
    """Of each click: whether it plainly fits; and where it does, its list's row and its microseconds after the impression."""

    fits: Flags
    row: Int64s
    delay_us: Int64s


def find_lists(feeds: Feeds, standing: pa.Table, fresh: pa.Table, others: Sequence[str], known: KeySet, recent: Recent) -> Lists:
    """Return the batch's standing impressions, and those on file for its other clicks and for the impression ids in `others`."""
    own = _own_lists(standing)
    table = _join([own, *_find_followed(recent, fresh["impression_key"].to_numpy())])
    followed, place = len(table), _find_places(fresh, table)
    absent = _find_absent(fresh, place, known)
    if len(absent) or others:
        found = _find_on_file(feeds, fresh.select(["impression_id", "ts_us"]).take(pa.array(absent)), others, table, recent)
        table = _join([table, *found])
        place = _find_places(fresh, table)
    return Lists(own, table, followed, place)


def _own_lists(standing: pa.Table) -> pa.Table:
    norms = standing["items_norm"].combine_chunks()
    items = standing["items"].combine_chunks()
    items = items if norms.null_count == len(norms) else pc.if_else(pc.is_valid(norms), norms, items)
    return standing.select(COLUMNS[:-1]).append_column("items", items)


def _join(tables: Sequence[pa.Table]) -> pa.Table:
    """Return lists as one table, whose columns have one chunk."""
    schema = tables[0].schema
    return pa.concat_tables([table if table.schema == schema else table.cast(schema) for table in tables]).combine_chunks()


def _find_places(fresh: pa.Table, lists: pa.Table) -> Int64s:
    """Return for each click the row of its list, -1 where it is not among these."""
    if not len(fresh) or not len(lists):
        return np.full(len(fresh), -1)
    wanted, keys = fresh["impression_key"].to_numpy(), lists["impression_key"].to_numpy()
    order = keys.argsort()
    row = order.take(keys[order].searchsorted(wanted), mode="clip")
    is_key = keys[row] == wanted
    same = pc.equal(fresh["impression_id"], lists["impression_id"].take(pa.array(row))).to_numpy()
    if not same[is_key].all():  # different texts of one key
        place = pc.index_in(fresh["impression_id"], value_set=lists["impression_id"].combine_chunks())
        return place.fill_null(-1).to_numpy().astype(np.int64)  # type: ignore[no-any-return]
    return np.where(is_key, row, -1)


def _find_absent(fresh: pa.Table, place: Int64s, known: KeySet) -> Int64s:
    """Return the rows of clicks without a list yet that the file may have one for."""
    rows = (place < 0).nonzero()[0]
    return rows[known.contains(fresh["impression_key"].to_numpy()[rows])] if len(rows) else rows


def _find_on_file(feeds: Feeds, absent: pa.Table, others: Sequence[str], at_hand: pa.Table, recent: Recent) -> list[pa.Table]:
    """Return the lists of these clicks and those of the ids in `others`, but for the lists at hand."""
    ids = [*absent["impression_id"].chunks, pa.array(others, pa.string())]
    wanted = _without(pa.table({"impression_id": pa.concat_arrays(ids)}), at_hand)
    if not len(wanted):
        return []
    recent.show_unwritten(feeds, recent.lists, recent.clicked)
    near = _find_near(feeds, absent)
    return near + _find_far(feeds, _without(wanted, *near), absent["ts_us"])


def _without(rows: pa.Table, *lists: pa.Table) -> pa.Table:
    """Return the rows whose impression_id is in none of these tables."""
    for table in lists:
        if len(rows) and len(table):
            rows = rows.filter(pc.invert(pc.is_in(rows["impression_id"], value_set=table["impression_id"].combine_chunks())))
    return rows


def _find_followed(recent: Recent, keys: Keys) -> list[pa.Table]:
    """Return the lists with these keys that are in memory with all that was clicked on them since."""
    _, lists = recent.lists.find(np.unique(keys))
    if lists is None:
        return []
    followed = lists["batch"].to_numpy() >= recent.clicked.complete_from
    lists = lists.select(COLUMNS)
    return [lists if followed.all() else lists.filter(pa.array(followed))]


def _find_near(feeds: Feeds, absent: pa.Table) -> list[pa.Table]:
    """Return the lists of these clicks that were shown not long before them, which nearly all were."""
    ts_us = absent["ts_us"].to_numpy()
    groups = group_times(ts_us)[:1]
    ids = [absent["impression_id"].take(pa.array(rows)).combine_chunks().unique() for rows in groups]
    return [
        clicks.find_lists_between(feeds, names, int(ts_us[rows].min()) - NEAR_US, int(ts_us[rows].max()))
        for names, rows in zip(ids, groups, strict=True)
    ]


def _find_far(feeds: Feeds, wanted: pa.Table, clicked_us: pa.ChunkedArray) -> list[pa.Table]:
    """Return these lists, wherever they are: first those of the days before the clicks, and what is left from the whole file."""
    spans = [(0, MAX_TS_US)]
    if len(clicked_us):
        clicked = pc.min_max(clicked_us).as_py()
        spans.insert(0, (clicked["min"] - FAR_US, clicked["max"]))
    found: list[pa.Table] = []
    for low_us, high_us in spans:
        names = _without(wanted, *found)["impression_id"].combine_chunks().unique()
        found += clicks.find_scattered_lists(feeds, names, low_us, high_us)
    return found


def find_plain(fresh: pa.Table, lists: Lists, window_us: int, last_arrival_us: int) -> Plain:
    """Find the clicks that fit the list they belong to and did not wait for it too long, whenever it came."""
    ts_us, position = fresh["ts_us"].to_numpy(), fresh["position"].to_numpy()
    if not len(ts_us) or not len(lists.table):
        return no_plain(fresh)
    row = np.maximum(lists.place, 0)
    delay_us = ts_us - lists.table["ts_us"].to_numpy()[row]
    items = lists.table["items"].combine_chunks()
    starts = items.offsets.to_numpy()
    first = starts[row]
    inside = position < starts[row + 1] - first
    shown = items.values.take(pa.array(np.where(inside, first + position, first)))
    same = pc.fill_null(pc.equal(fresh["item_norm"].combine_chunks(), shown), True).to_numpy(zero_copy_only=False)
    in_time = (delay_us >= 0) & (delay_us <= window_us) & (ts_us + window_us >= last_arrival_us)
    return Plain((lists.place >= 0) & in_time & inside & same, row, delay_us)


def no_plain(fresh: pa.Table) -> Plain:
    """Say that every click is to be judged singly."""
    nothing = np.zeros(len(fresh), np.int64)
    return Plain(nothing.astype(np.bool_), nothing, nothing)


def new_positions(
    feeds: Feeds,
    lists: Lists,
    fresh: pa.Table,
    plain: Plain,
    others: Sequence[tuple[int, int]],
    window_us: int,
    recent: Recent,
) -> pa.Table:
    """Return day, query_norm, item_norm, position of each list and position that is clicked for the first time.

    `others` are rows of `lists` and positions of clicks that were judged singly and count. What is returned is remembered.
    """
    cells = plain.row[plain.fits] << 32 | fresh["position"].to_numpy()[plain.fits]
    if others:
        cells = np.concatenate([cells, np.array([row << 32 | position for row, position in others], np.int64)])
    cells = np.unique(cells)
    cells = cells[~np.isin(cells, _find_clicked(feeds, lists, cells >> 32, window_us, recent), kind="sort")]
    rows, position = cells >> 32, cells & 0xFFFFFFFF
    items = lists.table["items"].combine_chunks()
    found = lists.table.select(["impression_id", "day", "query_norm"]).take(pa.array(rows))
    item_norm = items.values.take(pa.array(items.offsets.to_numpy()[rows] + position))
    place = pa.array(position, pa.int32())
    keys = lists.table["impression_key"].to_numpy()[rows]
    recent.clicked.add(keys, pa.table({"impression_id": found["impression_id"], "position": place}), recent.batch)
    columns = {"day": found["day"], "query_norm": found["query_norm"], "item_norm": item_norm, "position": place}
    return pa.table(columns)


def _find_clicked(feeds: Feeds, lists: Lists, rows: Int64s, window_us: int, recent: Recent) -> Int64s:
    """Return as row << 32 | position what was clicked before on lists, given by their rows in ascending order."""
    rows = np.unique(rows[rows.searchsorted(len(lists.own)) :])
    if not len(rows):
        return rows
    clicked = _recall_clicked(recent, lists.table, rows)
    if rows[-1] < lists.followed:
        return clicked
    recent.show_unwritten(feeds, recent.clicked)
    row_of = {lists.table["impression_id"][row].as_py(): row for row in rows[rows >= lists.followed].tolist()}
    found = clicks.find_clicked(feeds, lists.table.take(pa.array(list(row_of.values()))), window_us)
    return np.concatenate([clicked, np.array([row_of[name] << 32 | position for name, position in found], np.int64)])


def _recall_clicked(recent: Recent, lists: pa.Table, rows: Int64s) -> Int64s:
    """Return in the same way what is known in memory to be clicked on these lists."""
    of_list, cells = recent.clicked.find(lists["impression_key"].to_numpy()[rows])
    if cells is None:
        return of_list
    row = rows[of_list]
    same = pc.equal(cells["impression_id"], lists["impression_id"].take(pa.array(row))).to_numpy()
    clicked: Int64s = (row << 32 | cells["position"].to_numpy())[same]
    return clicked
