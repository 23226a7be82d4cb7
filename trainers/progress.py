"""Progress bars on a terminal, for stages that take longer than two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield the items while a bar on standard error counts them; a pipe or a log file gets no bar."""
    from rich.console import Console
    from rich.progress import track as draw

    console = Console(stderr=True)
    yield from draw(items, description=what, total=total, console=console, disable=not console.is_terminal, transient=True)
