"""The HTTP server's end: not ready first, then the port closes, then the calls in flight end.

uvicorn closes the port as soon as a signal arrives, while load balancers still send calls to it. Here SIGTERM first makes /readyz
answer 503 and serves on for `serving.drain_s`, until every balancer has seen that.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

import uvicorn

log = logging.getLogger("serving")


class DrainingServer(uvicorn.Server):
    """Sets `stopping` at SIGTERM and closes its port `drain_s` seconds later; SIGINT and a second signal do not wait."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event, drain_s: float) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._drain_s = drain_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop. Runs in the main thread, between two steps of whatever runs there."""
        drains = sig == signal.SIGTERM and not self._stopping.is_set() and self._drain_s > 0
        self._stopping.set()
        if not drains:
            super().handle_exit(sig, frame)
            return
        log.info("event=stopping drain_s=%g", self._drain_s)
        timer = threading.Timer(self._drain_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()
