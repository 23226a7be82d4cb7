"""Tables and lines for people: ruled and folded to the width of a terminal, whole lines without rules in a pipe or a file.

Users wrote much of what is shown, so no text is read as markup, emoji code or terminal command."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from queryloop.output import clean

NOTHING = "–"
"""Stands for a value that is not known, or not yet."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], texts: Collection[str] = ()) -> None:
    """Print rows below their column names; the columns named in `texts` may fold on a terminal, the others stay whole."""
    cells = [[cell(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        print("\n".join(_align([list(columns), *cells])))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(Text(name), overflow="fold", no_wrap=name not in texts)
    for row in cells:
        table.add_row(*map(Text, row))
    _console().print(table)


def print_line(*parts: str | tuple[str, str]) -> None:
    """Print one line, however long, of texts and of (text, style) pairs; styles show on a terminal only."""
    texts = [(clean(part), "") if isinstance(part, str) else (clean(part[0]), part[1]) for part in parts]
    _console().print(Text.assemble(*texts), soft_wrap=True)


def cell(value: Any) -> str:
    """Return a value as text for a terminal, what is None as a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return clean(str(value))


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose cells begin below each other."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    padded = ([one + " " * (width - cell_len(one)) for one, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in padded]


def _console() -> Console:
    return Console(markup=False, emoji=False, highlight=False)
