"""What a benchmark says while it runs, on standard error: a run takes minutes."""

from __future__ import annotations

import sys
import time

BEGAN = time.monotonic()


def tell(text: str) -> None:
    """One line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)
