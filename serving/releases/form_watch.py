"""Whether the live release keeps the form of a list: by the record of its gate, and by the lists that it wrote last."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from serving.metrics import Form

WINDOW, LEAST = 500, 100
"""The newest lists that are counted, and how many a share needs."""
MAX_MALFORMED, MAX_FORCED = 0.1, 0.5
"""The share of repaired and fallback lists that is too much, and that of lists in which the grammar changed a draw."""


class FormWatch:
    """Counts the newest lists of one release; another release's first list starts anew. One thread counts, any may read."""

    def __init__(self) -> None:
        self._release: str | None = None
        self._newest: deque[tuple[bool, bool]] = deque(maxlen=WINDOW)

    def count(self, release: str, form: Form, forced: int) -> None:
        """Count one answered list, with how many of its draws the grammar changed."""
        if release != self._release:
            self._newest.clear()
            self._release = release
        self._newest.append((form != "well_formed", forced > 0))

    def find_faults(self, release: str | None, gate: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with a live release: that its gate refused it, and what share of its lists broke the form."""
        faults = [f"its gate refused it: {reason}" for reason in gate.get("reasons", ())] if gate.get("passed") is False else []
        newest = list(self._newest) if release == self._release else []
        if len(newest) < LEAST:
            return faults
        malformed, forced = (sum(column) for column in zip(*newest, strict=True))
        last = f"of its last {len(newest)} lists"
        if malformed > MAX_MALFORMED * len(newest):
            faults.append(f"{malformed} {last} were not well-formed, at most {MAX_MALFORMED:.0%} should be")
        if forced > MAX_FORCED * len(newest):
            faults.append(f"the grammar had to change a draw in {forced} {last}, at most {MAX_FORCED:.0%} should need it")
        return faults
