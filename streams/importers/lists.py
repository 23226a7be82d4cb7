"""The lists of a row: what was shown in it, and what of that was clicked."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from streams.importers.cells import Cells, parse_whole
from streams.importers.mapping import Clicked, Column, Items, Position
from streams.importers.tables import Row, RowError

ReadItems = Callable[[Row], list[str]]
ReadClicked = Callable[[Row, list[str]], list[int]]

_texts = msgspec.json.Decoder(list[str | int])


def make_items(items: Items, cells: Cells, key: str) -> ReadItems:
    """Return what reads the items of a row, of several columns those that are not empty. It raises RowError where none is."""
    if items.columns is not None:
        reads = [cells.text(column, f"{key}.columns") for column in items.columns]
        return lambda row: _some([text for read in reads if (text := read(row)) is not None], key)
    assert items.column is not None
    split = _splitter(cells, items.column, f"{key}.column", items.split, items.json_list)
    return lambda row: _some(split(row), key)


def make_clicked(clicked: Clicked, shown: Items, cells: Cells, key: str) -> ReadClicked:
    """Return what reads the clicked positions (from 0) of a row, given its items; a position need not exist."""
    if clicked.flags is not None:
        return _by_flags(clicked.flags, shown, cells, key)
    if clicked.positions is not None:
        split = _splitter(cells, clicked.positions, f"{key}.positions", clicked.split, clicked.json_list)
        return lambda row, items: [parse_whole(text, str(clicked.positions)) - clicked.first for text in split(row)]
    assert clicked.items is not None
    split = _splitter(cells, clicked.items, f"{key}.items", clicked.split, clicked.json_list)
    return lambda row, items: [_place(text, items, str(clicked.items)) for text in split(row)]


def make_flag(column: Column, cells: Cells, key: str) -> Callable[[Row], bool]:
    """Return whether a cell says yes: a number over 0, or true, yes; empty, 0, false and no say no. It raises RowError."""
    read = cells.text(column, key)

    def flag(row: Row) -> bool:
        text = (read(row) or "0").strip().lower()
        if text in ("true", "yes", "t", "y"):
            return True
        if text in ("false", "no", "f", "n"):
            return False
        try:
            return float(text) > 0
        except ValueError:
            raise RowError(f"{column}: {text!r} is neither a number nor true or false") from None

    return flag


def make_rank(order: Position | None, cells: Cells, key: str) -> Callable[[Row], int] | None:
    """Return what reads an item's rank in its list, None where the rows' order is the order."""
    return None if order is None else cells.position(order, key)


def _by_flags(flags: tuple[Column, ...], shown: Items, cells: Cells, key: str) -> ReadClicked:
    reads = [make_flag(column, cells, f"{key}.flags") for column in flags]
    # A flag's position is that of its item among those that are there.
    present = [cells.text(column, f"{key}.flags") for column in shown.columns or ()]

    def clicked(row: Row, items: list[str]) -> list[int]:
        there = [number for number, read in enumerate(present) if read(row) is not None] if present else range(len(items))
        return [position for position, number in enumerate(there) if number < len(reads) and reads[number](row)]

    return clicked


def _splitter(cells: Cells, column: Column, key: str, split: str | None, json_list: bool) -> ReadItems:
    read = cells.text(column, key)

    def texts(row: Row) -> list[str]:
        text = read(row)
        if text is None:
            return []
        if split is not None:
            return [part for one in text.split(split) if (part := one.strip())]
        return _decode(text, str(column)) if json_list else [text]

    return texts


def _decode(text: str, label: str) -> list[str]:
    try:
        return [str(one) for one in _texts.decode(text)]
    except (msgspec.MsgspecError, UnicodeEncodeError):
        raise RowError(f"{label}: {text[:80]!r} is no JSON list of texts") from None


def _some(items: list[str], key: str) -> list[str]:
    if not items:
        raise RowError(f"{key}: none")
    return items


def _place(text: str, items: list[str], label: str) -> int:
    try:
        return items.index(text)
    except ValueError:
        raise RowError(f"{label}: {text!r} is not among the items") from None
