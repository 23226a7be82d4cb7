"""Whether the live release keeps the form of a list: by the record of its gate, and by the lists that it wrote last."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from serving.metrics import Form

WINDOW, LEAST, MAX_MALFORMED = 500, 100, 0.1
"""The newest lists that are counted, how many a share needs, and the share of repaired and fallback lists that is too much."""


class FormWatch:
    """Counts the newest lists of one release; another release's first list starts anew. One thread counts, any may read."""

    def __init__(self) -> None:
        self.malformed = 0
        self._release: str | None = None
        self._newest: deque[bool] = deque()

    def count(self, release: str, form: Form) -> None:
        """Count one answered list."""
        if release != self._release:
            self.malformed, self._release, self._newest = 0, release, deque()
        if len(self._newest) == WINDOW:
            self.malformed -= self._newest.popleft()
        self._newest.append(form != "well_formed")
        self.malformed += self._newest[-1]

    def find_faults(self, release: str | None, gate: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with a live release: that its gate refused it, and the share of its lists that needed repair."""
        faults = [f"its gate refused it: {reason}" for reason in gate.get("reasons", ())] if gate.get("passed") is False else []
        written, malformed = len(self._newest), self.malformed
        if release == self._release and written >= LEAST and malformed > MAX_MALFORMED * written:
            faults.append(f"{malformed} of its last {written} lists were not well-formed, at most {MAX_MALFORMED:.0%} should be")
        return faults
