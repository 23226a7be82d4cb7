"""What a reader of windows waits while events come in: a query's windows, asked for now and then, and how long each answer took.

A read writes what its shards have applied before it looks, so it costs the counting something, and its time is part of how soon
somebody sees a count.
"""

from __future__ import annotations

import threading
import time
from http.client import HTTPConnection
from types import TracebackType
from typing import Self
from urllib.parse import urlencode

TIMEOUT_S = 30.0
PRIOR_AGE_S = 3600
"""The smoothing's prior reads every window, once in so long: that is another measurement."""


class ReadProbe:
    """Asks the worker at host:port for the windows of `query` in a thread of its own within a `with` block.

    `waits_s` are the moment of each question (seconds since the epoch) and the seconds until its answer. Leaving the block raises
    RuntimeError when an answer was none.
    """

    def __init__(self, host: str, port: int, query: str, every_s: float) -> None:
        self.waits_s: list[tuple[float, float]] = []
        self._connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
        self._path = f"/v1/windows?{urlencode({'query': query, 'max_age_s': PRIOR_AGE_S})}"
        self._every_s = every_s
        self._fault = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="read-probe", daemon=True)

    def since(self, at: float) -> list[float]:
        """Return the seconds of the answers to what was asked from that moment on."""
        return [seconds for asked, seconds in self.waits_s if asked >= at]

    def _ask(self) -> None:
        while not self._fault:
            asked = time.time()
            try:
                self._connection.request("GET", self._path)
                answer = self._connection.getresponse()
                body = answer.read()
            except OSError as error:
                self._fault = repr(error)
            else:
                self._fault = "" if answer.status == 200 else f"status {answer.status}: {body[:200]!r}"
                self.waits_s.append((asked, time.time() - asked))
            if self._over.wait(self._every_s):
                return

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._connection.close()
        if self._fault and error is None:
            raise RuntimeError(f"a window could not be read: {self._fault}")
