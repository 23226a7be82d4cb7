"""How a job ends when it does not crash: with figures, skipped, or with an error that a person can correct."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Skipped(Exception):
    """There is nothing to do, or not enough data yet; the text says what is missing and how to get it."""


class JobError(RuntimeError):
    """The job cannot be done with these settings; the text names the setting and what to do."""


@dataclass(frozen=True)
class Outcome:
    """`detail` is one line for people; `figures` go into the ledger as they are (plain JSON values)."""

    detail: str
    figures: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"detail": self.detail, **self.figures}
