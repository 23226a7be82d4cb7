"""How a job ends when it does not crash: with figures, with nothing to do, or for want of something that a person must give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class Skipped(Exception):
    """There is nothing to do, or nothing to do it with yet; the text says what is missing and how it comes about."""


class JobError(RuntimeError):
    """The job cannot be done as the settings stand; the text names the setting and what to do."""


@dataclass(frozen=True)
class Outcome:
    """`detail` is one line for people; `figures` go into the ledger as they are (plain JSON values)."""

    detail: str
    figures: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {"detail": self.detail, **self.figures}
