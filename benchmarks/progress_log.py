"""Progress lines of a benchmark on standard error, since a run takes minutes."""

from __future__ import annotations

import sys
import time

BEGAN = time.monotonic()


def log_progress(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)
