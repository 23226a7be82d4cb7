"""Shows how far a training job is: a line that changes on a terminal, and now and then a line of its own in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from trainers.jobs.ledger import Ledger, Run

LINE_EVERY_S = 15.0
TAIL_BYTES = 2000


class JobProgress:
    """A context manager that yields a function to be called several times a second while the run goes on.

    `clock` gives seconds; on a stream that is no terminal a line is printed at the start and then every `LINE_EVERY_S`."""

    def __init__(
        self, ledger: Ledger, number: int, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ledger, self._number, self._clock = ledger, number, clock
        self._console = console or Console(file=sys.stderr)
        self._since, self._last = clock(), float("-inf")
        self._status = self._console.status(f"run {number} starts") if self._console.is_terminal else None

    def __enter__(self) -> Callable[[], None]:
        if self._status is not None:
            self._status.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def _show(self) -> None:
        now = self._clock()
        if self._status is not None:
            self._status.update(Text(self._describe(now)))
        elif now - self._last >= LINE_EVERY_S:
            self._last = now
            self._console.print(Text(self._describe(now)), soft_wrap=True)

    def _describe(self, now: float) -> str:
        run = self._ledger.run(self._number)
        return describe_progress(run, now - self._since)


def describe_progress(run: Run, elapsed_s: float) -> str:
    """Return a run's state, the time it has taken and the end of its log, in one line."""
    line = last_line(run.log)
    return f"{run.kind} job {run.id} {run.state}, {elapsed_s:.0f} s" + (f"  {line}" if line else "")


def last_line(log: str | None) -> str:
    """Return the last line of a log as printable text of at most 160 characters, without the time and level that lead it."""
    path = Path(log) if log else None
    if path is None or not path.exists():
        return ""
    lines = path.read_bytes()[-TAIL_BYTES:].decode("utf-8", "replace").replace("\r", "\n").strip().splitlines()
    text = "".join(c for c in lines[-1] if c.isprintable()) if lines else ""
    return (text[text.find("event=") :] if "event=" in text else text)[:160]
