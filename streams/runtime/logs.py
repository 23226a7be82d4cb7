"""Logs of a process: one line an event, `key=value`, to standard error; chatty libraries are held to a line now and then.

While a broker is away aiokafka and kafka-python print some 40 lines a second. Each of their messages goes through once, then at
most once in `QUIET_S`, with the count of what was held back.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

QUIET_S = 10.0
CHATTY = ("aiokafka", "kafka", "faust", "mode")
FORMAT = "ts=%(asctime)s level=%(levelname)s logger=%(name)s %(message)s"


class RateLimit(logging.Filter):
    """Lets each message template of each logger through once in `quiet_s`, then says how many it held back."""

    def __init__(self, quiet_s: float = QUIET_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._quiet_s = quiet_s
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record may be written; records of our own loggers always may."""
        if not record.name.startswith(CHATTY):
            return True
        key = (record.name, str(record.msg)[:80])
        now = self._clock()
        last, held = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._quiet_s:
            self._seen[key] = (last, held + 1)
            return False
        self._seen[key] = (now, 0)
        if held:
            record.msg, record.args = f"{record.getMessage()} (and {held} more like it)", None
        return True


class OneLine(logging.Formatter):
    """Keeps an event on one line: library messages become `message="…"`, control characters are escaped, a traceback follows."""

    def __init__(self) -> None:
        super().__init__(FORMAT, "%Y-%m-%dT%H:%M:%S%z")

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = record.message if record.message.startswith("event=") else f'message="{record.message}"'
        record.message = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        return super().formatMessage(record)


def configure_logs(level: int = logging.INFO) -> None:
    """Send all logs of this process to standard error: ours from `level` on, those of the libraries from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    handler.addFilter(RateLimit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
