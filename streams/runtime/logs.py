"""Logs of a process: one line an event, `key=value`, to standard error; messages of chatty libraries are rate-limited.

While a broker is away aiokafka and kafka-python print some 40 lines a second. Each of their messages is written once, then at
most once in `QUIET_S` seconds, with the count of those suppressed.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

QUIET_S = 10.0
CHATTY = ("aiokafka", "kafka", "faust", "mode")
FORMAT = "ts=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s"


class RateLimitFilter(logging.Filter):
    """Passes each message template of each library logger once in `quiet_s` seconds, with the count of those suppressed."""

    def __init__(self, quiet_s: float = QUIET_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._quiet_s = quiet_s
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written; records of our own loggers always are."""
        if not record.name.startswith(CHATTY):
            return True
        key = (record.name, str(record.msg)[:80])
        now = self._clock()
        last, suppressed = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._quiet_s:
            self._seen[key] = (last, suppressed + 1)
            return False
        self._seen[key] = (now, 0)
        if suppressed:
            record.msg, record.args = f"{record.getMessage()} (and {suppressed} more like it)", None
        return True


class OneLineFormatter(logging.Formatter):
    """One line a record: library messages become `message="…"`, control characters are escaped, a traceback follows."""

    def __init__(self) -> None:
        super().__init__(FORMAT, "%Y-%m-%dT%H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = record.message if record.message.startswith("event=") else f'message="{record.message}"'
        record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        return super().formatMessage(record)


def configure_logs(level: int = logging.INFO) -> None:
    """Send all logs of this process to standard error: our own from `level` on, those of chatty libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLineFormatter())
    handler.addFilter(RateLimitFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
