"""The sections of a mapping as functions: a row goes in, the fields of its events come out."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from streams.importers.cells import Cells, Needed
from streams.importers.grouping import Group, order_rows
from streams.importers.lists import ReadClicked, make_clicked, make_flag, make_items, make_rank
from streams.importers.mapping import Clicked, ImpressionSection, Mapping
from streams.importers.tables import Row, RowError

Fields = dict[str, Any]
Make = Callable[[Row], list[Fields]]
One = Callable[[Row], Fields]
RowId = Callable[[Row, str], str]

OPTIONAL = {"query": ("source",), "impression": ("task", "release"), "click": ("item",)}


def digest(*parts: str | int) -> str:
    """Return an id made from texts and numbers: 32 hexadecimal digits, the same from the same."""
    return blake2b(repr(parts).encode("ascii", "backslashreplace"), digest_size=16).hexdigest()


def make_section(kind: str, mapping: Mapping, cells: Cells, row_id: RowId) -> Make:
    """Return what makes the events of one type from a row: an impression comes with its clicks. It raises RowError."""
    base = _make_base(kind, mapping, cells, row_id)
    if kind == "query":
        return lambda row: [base(row)]
    if kind == "click":
        return _make_click(base, mapping, cells)
    assert mapping.impression is not None
    return _make_impression(base, mapping.impression, mapping, cells)


def make_grouped(mapping: Mapping, cells: Cells, row_id: RowId, name: str) -> tuple[Needed, Callable[[Group], list[Fields]]]:
    """Return what tells a row's impression, and what makes the events of a complete one. Both raise RowError."""
    section = mapping.impression
    assert section is not None and section.impression_id is not None and section.items.column is not None
    base = _make_base("impression", mapping, cells, row_id)
    item = cells.needed(section.items.column, "impression.items")
    rank = make_rank(section.order, cells, "impression.order")
    exact = section.order is not None and section.order.first is not None
    moment = cells.moment(mapping.time, None, "time.column")
    clicks = _make_row_clicks(section.clicked, mapping, cells)
    named = section.id is not None or section.event_id is not None

    def make(group: Group) -> list[Fields]:
        rows = group.rows if rank is None else order_rows(group.rows, [rank(row) for row in group.rows], exact)
        event = base(group.rows[0])
        event |= {"ts": min(map(moment, rows)), "impression_id": group.id, "items": [item(row) for row in rows]}
        if not named:
            event["event_id"] = digest("impression", name, group.id)
        clicked = [_click_of(event, position, ts) for position, row in enumerate(rows) for ts in clicks(row)]
        return [event, *clicked]

    return cells.needed_value(section.impression_id, "impression.impression_id"), make


def _make_base(kind: str, mapping: Mapping, cells: Cells, row_id: RowId) -> One:
    """Return what reads the fields that all events have, and those of this type that are one text."""
    section = getattr(mapping, kind)
    own = {name: getattr(section, name) or getattr(mapping.fields, name) for name in ("session_id", "user_id", "query")}
    session_id, query = (
        cells.needed_value(own[name], f"fields.{name}", lambda row: row_id(row, "row")) for name in ("session_id", "query")
    )
    optional = {name: cells.value(getattr(section, name), f"{kind}.{name}") for name in OPTIONAL[kind] if getattr(section, name)}
    if own["user_id"] is not None:
        optional["user_id"] = cells.value(own["user_id"], "fields.user_id")
    optional |= {name: cells.text(column, f"extra.{name}") for name, column in mapping.extra.items()}
    event_id, moment = _make_id(kind, section, cells, row_id), cells.moment(mapping.time, None, "time.column")

    def base(row: Row) -> Fields:
        event: Fields = {"type": kind, "event_id": event_id(row), "ts": moment(row), "session_id": session_id(row)}
        event["query"] = query(row)
        for name, read in optional.items():
            if (text := read(row)) is not None:
                event[name] = text
        return _require_text(event)

    return base


def _require_text(event: Fields) -> Fields:
    """Refuse what cannot be written as JSON: bytes that are not of the file's encoding."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise RowError(f"{name}: not text in file.encoding") from None
    return event


def _make_id(kind: str, section: Any, cells: Cells, row_id: RowId) -> Needed:
    if section.event_id is not None:
        return cells.needed_value(section.event_id, f"{kind}.event_id", lambda row: row_id(row, kind))
    if section.id is None:
        return lambda row: row_id(row, kind)
    reads = [cells.text(column, f"{kind}.id") for column in section.id]
    return lambda row: digest(kind, *(read(row) or "" for read in reads))


def _make_click(base: One, mapping: Mapping, cells: Cells) -> Make:
    assert mapping.click is not None
    impression_id = cells.needed_value(mapping.click.impression_id, "click.impression_id")
    position = cells.position(mapping.click.position, "click.position")
    return lambda row: [base(row) | {"impression_id": impression_id(row), "position": position(row)}]


def _make_impression(base: One, section: ImpressionSection, mapping: Mapping, cells: Cells) -> Make:
    items = make_items(section.items, cells, "impression.items")
    impression_id = cells.value(section.impression_id, "impression.impression_id")
    clicked: ReadClicked = lambda row, shown: []  # noqa: E731
    if section.clicked is not None:
        clicked = make_clicked(section.clicked, section.items, cells, "impression.clicked")
    column = None if section.clicked is None else section.clicked.time
    moment = None if column is None else cells.moment(mapping.time, column, "impression.clicked.time")

    def make(row: Row) -> list[Fields]:
        event = base(row)
        event |= {"impression_id": impression_id(row) or event["event_id"], "items": items(row)}
        positions = dict.fromkeys(clicked(row, event["items"]))
        ts = event["ts"] if moment is None or not positions else moment(row)
        return [event, *(_click_of(event, position, ts) for position in positions)]

    return make


def _make_row_clicks(clicked: Clicked | None, mapping: Mapping, cells: Cells) -> Callable[[Row], list[float]]:
    """Return the times of the clicks on the item of a row: none, or one."""
    if clicked is None or clicked.flag is None:
        return lambda row: []
    flag = make_flag(clicked.flag, cells, "impression.clicked.flag")
    moment = cells.moment(mapping.time, clicked.time, "impression.clicked.time")
    return lambda row: [moment(row)] if flag(row) else []


def _click_of(impression: Fields, position: int, ts: float) -> Fields:
    """The click on a position of an impression, its id made from both."""
    shared: Fields = {
        name: impression[name] for name in ("session_id", "user_id", "query", "impression_id") if name in impression
    }
    click: Fields = {"type": "click", "event_id": digest("click", impression["event_id"], position), "ts": ts, **shared}
    click["position"] = position
    if 0 <= position < len(impression["items"]):  # another one is for the worker to judge
        click["item"] = impression["items"][position]
    return click
