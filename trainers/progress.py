"""How far a long stage is: a bar on a terminal, and in a log a line now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
log = logging.getLogger(__name__)
LINE_EVERY_S = 15.0


@dataclass
class ProgressLog:
    """Logs how many of a stage's steps are done, at most every `LINE_EVERY_S`; `clock` gives seconds."""

    what: str
    total: int | None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._since = self._last = self.clock()

    def show(self, done: int) -> None:
        """Log the number of steps done, unless a line was logged a moment ago."""
        now = self.clock()
        if now - self._last >= LINE_EVERY_S:
            self._last = now
            of = f" of={self.total}" if self.total is not None else ""
            log.info("event=progress stage=%r done=%d%s seconds=%.0f", self.what, done, of, now - self._since)


def track(items: Iterable[T], what: str, total: int | None = None, clock: Callable[[], float] = time.monotonic) -> Iterator[T]:
    """Yield the items while a bar on standard error counts them; where that is no terminal, lines in the log do."""
    from rich.console import Console
    from rich.progress import track as draw

    console = Console(stderr=True)
    if console.is_terminal:
        yield from draw(items, description=what, total=total, console=console, transient=True)
        return
    lines = ProgressLog(what, total, clock)
    for number, item in enumerate(items):
        lines.show(number)
        yield item
