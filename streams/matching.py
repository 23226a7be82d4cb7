"""Matching: which clicks plainly fit the list they belong to, told for whole columns at once.

Nearly all clicks do. What is left, and every click whose fate depends on what came when, `streams.attribution` judges singly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streams import clicks
from streams.events import MAX_TS_US
from streams.feeds import Feeds
from streams.keys import KeySet
from streams.lines import Flags, Int64s
from streams.ranges import group_times
from streams.recent import Recent
from streams.rules import DAY_US, HOUR_US

COLUMNS = ["impression_key", "impression_id", "ts_us", "day", "query_norm", "items"]
NEAR_US = HOUR_US // 2
"""Before a click its list is looked for first."""
FAR_US = 2 * DAY_US
"""Then so long before it: a click that comes after the attribution window seldom comes days after it."""


@dataclass(frozen=True, slots=True)
class Lists:
    """The lists by which a batch's clicks are judged (COLUMNS; items normalised): first the batch's own, `fresh` of them.

    Of the first `followed` lists all positions that are clicked already, (impression_id, position), are in `clicked`.
    """

    table: pa.Table
    fresh: int
    followed: int
    clicked: set[tuple[str, int]]

    def own(self) -> pa.Table:
        """Return the batch's own."""
        return self.table.slice(0, self.fresh)

    def on_file(self) -> set[str]:
        """Return the ids of those that came before the batch."""
        return set(self.table["impression_id"].slice(self.fresh).to_pylist())


@dataclass(frozen=True, slots=True)
class Plain:
    """Of each click: whether it plainly fits; and where it does, its list's row and its microseconds after the impression."""

    fits: Flags
    row: Int64s
    delay_us: Int64s


def find_lists(feeds: Feeds, standing: pa.Table, fresh: pa.Table, others: Iterable[str], known: KeySet, recent: Recent) -> Lists:
    """Return the batch's standing impressions, and those on file for its other clicks and for the impression ids in `others`."""
    norms = standing["items_norm"].combine_chunks()
    items = standing["items"].combine_chunks()
    items = items if norms.null_count == len(norms) else pc.if_else(pc.is_valid(norms), norms, items)
    own = standing.select(COLUMNS[:-1]).append_column("items", items)
    absent = _without(fresh.select(["impression_id", "impression_key", "ts_us"]), own)
    absent = absent.filter(pa.array(known.contains(absent["impression_key"].to_numpy())))
    followed, clicked = _find_followed(recent, absent)
    found = [own, *followed]
    absent = _without(absent, *followed)
    wanted = pa.table({"impression_id": pa.concat_arrays([*absent["impression_id"].chunks, pa.array(list(others), pa.string())])})
    if len(wanted):
        recent.show_unwritten(feeds, recent.lists, recent.clicked)
        found += _find_near(feeds, absent)
        found += _find_far(feeds, _without(wanted, *found), absent["ts_us"])
    lists = pa.concat_tables([table if table.schema == own.schema else table.cast(own.schema) for table in found])
    return Lists(lists, len(own), len(own) + sum(map(len, followed)), clicked)


def _without(rows: pa.Table, *lists: pa.Table) -> pa.Table:
    """Return the rows whose impression_id is in none of these tables."""
    for table in lists:
        if len(rows) and len(table):
            rows = rows.filter(pc.invert(pc.is_in(rows["impression_id"], value_set=table["impression_id"].combine_chunks())))
    return rows


def _find_followed(recent: Recent, absent: pa.Table) -> tuple[list[pa.Table], set[tuple[str, int]]]:
    """Return the lists of these clicks that are in memory with all that was clicked on them since, and what was."""
    names = absent["impression_id"].combine_chunks()
    _, first = np.unique(names.dictionary_encode().indices.to_numpy(), return_index=True)
    keys = absent["impression_key"].to_numpy()[first]
    rows, lists = recent.lists.find(keys)
    if lists is None:
        return [], set()
    same = pc.equal(lists["impression_id"], names.take(pa.array(first[rows]))).to_numpy()
    followed = same & (lists["batch"].to_numpy() >= recent.clicked.complete_from)
    if not followed.all():
        lists = lists.filter(pa.array(followed))
    return [lists.select(COLUMNS)], _recall_clicked(recent, lists)


def _recall_clicked(recent: Recent, lists: pa.Table) -> set[tuple[str, int]]:
    """Return impression_id and position of what is known in memory to be clicked on these lists."""
    of_list, cells = recent.clicked.find(lists["impression_key"].to_numpy())
    if cells is None:
        return set()
    cells = cells.filter(pc.equal(cells["impression_id"], lists["impression_id"].take(pa.array(of_list))))
    return set(zip(*(column.to_pylist() for column in cells.columns), strict=True))


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
    ids = lists.table["impression_id"].combine_chunks()
    place = pc.fill_null(pc.index_in(fresh["impression_id"], value_set=ids), -1).to_numpy().astype(np.int64)
    row = np.maximum(place, 0)
    delay_us = ts_us - lists.table["ts_us"].to_numpy()[row]
    items = lists.table["items"].combine_chunks()
    starts = items.offsets.to_numpy()
    inside = position < np.diff(starts)[row]
    shown = items.values.take(pa.array(np.where(inside, starts[row] + position, starts[row])))
    same = pc.fill_null(pc.equal(fresh["item_norm"].combine_chunks(), shown), True).to_numpy(zero_copy_only=False)
    in_time = (delay_us >= 0) & (delay_us <= window_us) & (ts_us + window_us >= last_arrival_us)
    return Plain((place >= 0) & in_time & inside & same, row, delay_us)


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
    rows = np.concatenate([plain.row[plain.fits], np.array([row for row, _ in others], np.int64)])
    position = np.concatenate([fresh["position"].to_numpy()[plain.fits], np.array([p for _, p in others], np.int64)])
    cells = np.unique(rows << 32 | position)
    rows, position = cells >> 32, cells & 0xFFFFFFFF
    before = lists.clicked | _find_clicked(
        feeds, lists.table.take(pa.array(np.unique(rows[rows >= lists.followed]))), window_us, recent
    )
    if before:
        names = lists.table["impression_id"].take(pa.array(rows)).to_pylist()
        is_new = np.array([cell not in before for cell in zip(names, position.tolist(), strict=True)], np.bool_)
        rows, position = rows[is_new], position[is_new]
    items = lists.table["items"].combine_chunks()
    found = lists.table.select(["impression_key", "impression_id", "day", "query_norm"]).take(pa.array(rows))
    item_norm = items.values.take(pa.array(items.offsets.to_numpy()[rows] + position))
    cells = found.append_column("item_norm", item_norm).append_column("position", pa.array(position, pa.int32()))
    recent.clicked.add(cells["impression_key"].to_numpy(), cells.select(["impression_id", "position"]), recent.batch)
    return cells.select(["day", "query_norm", "item_norm", "position"])


def _find_clicked(feeds: Feeds, lists: pa.Table, window_us: int, recent: Recent) -> set[tuple[str, int]]:
    """Return impression_id and position of what was clicked before on lists that are not followed in memory."""
    if not len(lists):
        return set()
    recent.show_unwritten(feeds, recent.clicked)
    return clicks.find_clicked(feeds, lists, window_us) | _recall_clicked(recent, lists)
