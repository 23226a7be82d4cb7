"""A probe of reads while events are counted: a query's windows, asked for at intervals, and how long each answer took.

A read first writes what its shards have applied, so it slows counting, and its time is part of the delay until a count is seen.
"""

from __future__ import annotations

import time
from types import TracebackType

from benchmarks.probes.probe import Probe
from streams.api.client import HttpError, get

PRIOR_AGE_S = 3600
"""The smoothing's prior reads every window, once in so long: that is another measurement."""


class ReadProbe(Probe):
    """Asks the worker at `url` for the windows of `query`.

    `waits_s` are the moment of each question (seconds since the epoch) and the seconds until its answer. Leaving the block raises
    RuntimeError when an answer was none, after which it asks no more.
    """

    def __init__(self, url: str, query: str, every_s: float) -> None:
        super().__init__(every_s)
        self.waits_s: list[tuple[float, float]] = []
        self._url = url
        self._query = query
        self._error: HttpError | None = None

    def since(self, at: float) -> list[float]:
        """Return the seconds of the answers to what was asked from that moment on."""
        return [seconds for asked, seconds in self.waits_s if asked >= at]

    def probe(self) -> None:
        """Ask, and wait for the answer."""
        asked = time.time()
        try:
            get(f"{self._url}/v1/windows", None, {"query": self._query, "max_age_s": PRIOR_AGE_S})
        except HttpError as error:
            self._error = error
            self._over.set()
        self.waits_s.append((asked, time.time() - asked))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        if self._error and error is None:
            raise RuntimeError(f"a window could not be read: {self._error}") from self._error
