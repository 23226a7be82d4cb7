"""The demo's stages: which one runs, its progress and the time left; afterwards how long each took.

On a terminal there is a bar for the stage and one for the whole demo; elsewhere a line when a stage begins and one when it ends.
All of it goes to stderr.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from queryloop.demo.plots import Span

ReportShare = Callable[[float], None]
"""Takes the share of a stage that is done, 0 to 1."""


class Stages:
    """The stages of one run in order; `expected` gives the seconds of each, for the estimates."""

    def __init__(self, expected: Mapping[str, float], clock: Callable[[], float] = time.time) -> None:
        self.spans: list[Span] = []
        self.started = clock()
        self._expected, self._clock = expected, clock
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(40), TimeElapsedColumn(), _Left(), console=self._console, transient=True
        )
        self._whole = self._progress.add_task("the whole demo", total=1.0, left=sum(expected.values()))
        self._is_terminal = self._console.is_terminal

    def __enter__(self) -> Self:
        if self._is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    @property
    def current(self) -> str:
        """The name of the stage that runs, or of the last one."""
        return self.spans[-1].name if self.spans else "start"

    def print_line(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[ReportShare]:
        """Time a stage; yields a function that takes the share that is done. A stage that raises is recorded too."""
        begun = self._clock() - self.started
        self.spans.append(Span(name, begun, begun))
        number, expected = len(self.spans), self._expected.get(name, 1.0)
        title = f"{number}/{max(number, len(self._expected))} {name}"
        if not self._is_terminal:
            self.print_line(f"{title} … about {expected:.0f} s")
        task = self._progress.add_task(title, total=1.0, left=expected)
        self._estimate(task, name, begun, 0.0)
        try:
            yield lambda share: self._estimate(task, name, begun, min(1.0, share))
        finally:
            self.spans[-1] = Span(name, begun, self._clock() - self.started)
            self._progress.remove_task(task)
            self.print_line(f"{title}: {self.spans[-1].end - begun:.1f} s")

    def expect(self, elapsed: float) -> float:
        """Return the share of the current stage that is done, by time alone; at most 0.97."""
        return min(0.97, elapsed / max(1e-9, self._expected.get(self.current, 1.0)))

    def _estimate(self, task: TaskID, name: str, begun: float, share: float) -> None:
        """Update both bars; the time left is scaled by how slow the stages were so far."""
        elapsed = self._clock() - self.started - begun
        expected = self._expected.get(name, 1.0)
        over = {span.name for span in self.spans[:-1]}
        done = sum(self._expected.get(one, 1.0) for one in over)
        pace = max(0.5, begun / done) if done >= 20 else 1.0
        here = elapsed * (1 - share) / share if share > 0.05 else max(0.0, expected * pace - elapsed)
        ahead = sum(seconds for one, seconds in self._expected.items() if one not in over and one != name) * pace
        self._progress.update(task, completed=share, left=here)
        whole = begun + elapsed
        self._progress.update(self._whole, completed=whole / max(1e-9, whole + here + ahead), left=here + ahead)


class _Left(ProgressColumn):
    """The time left, as estimated by `Stages`."""

    def render(self, task: Task) -> Text:
        left = max(0, round(task.fields.get("left", 0.0)))
        return Text(f"{left // 60}:{left % 60:02d} left", style="cyan")
