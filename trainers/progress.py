"""Progress bars: a stage that takes longer than two seconds shows how far it is, where somebody can see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yields the items while a bar on standard error counts them; a pipe or a log file sees no bar."""
    from rich.console import Console
    from rich.progress import track as draw

    console = Console(stderr=True)
    yield from draw(items, description=what, total=total, console=console, disable=not console.is_terminal, transient=True)
