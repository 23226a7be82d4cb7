"""What a reader of windows waits while events come in: a query's windows, asked for now and then, and how long each answer took.

A read writes what its shards have applied before it looks, so it costs the counting something, and its time is part of how soon
somebody sees a count.
"""

from __future__ import annotations

import time
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from urllib.parse import urlencode

from benchmarks.probes.probe import Probe

TIMEOUT_S = 30.0
PRIOR_AGE_S = 3600
"""The smoothing's prior reads every window, once in so long: that is another measurement."""


class ReadProbe(Probe):
    """Asks the worker at host:port for the windows of `query`.

    `waits_s` are the moment of each question (seconds since the epoch) and the seconds until its answer. Leaving the block raises
    RuntimeError when an answer was none, after which it asks no more.
    """

    def __init__(self, host: str, port: int, query: str, every_s: float) -> None:
        super().__init__(every_s)
        self.waits_s: list[tuple[float, float]] = []
        self._connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
        self._path = f"/v1/windows?{urlencode({'query': query, 'max_age_s': PRIOR_AGE_S})}"
        self._fault = ""

    def since(self, at: float) -> list[float]:
        """Return the seconds of the answers to what was asked from that moment on."""
        return [seconds for asked, seconds in self.waits_s if asked >= at]

    def probe(self) -> None:
        """Ask, and wait for the answer."""
        asked = time.time()
        try:
            self._connection.request("GET", self._path)
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            self._fault = repr(error)
        else:
            self._fault = "" if answer.status == 200 else f"status {answer.status}: {body[:200]!r}"
            self.waits_s.append((asked, time.time() - asked))
        if self._fault:
            self._over.set()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._connection.close()
        if self._fault and error is None:
            raise RuntimeError(f"a window could not be read: {self._fault}")
