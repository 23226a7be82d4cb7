"""What a requested run was asked to do beside its kind; recorded in the ledger, so that the daemon's job knows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RunOptions:
    """Options of the job `policy`: `from_base` starts anew beside the champion, `force` promotes what a gate refused."""

    from_base: bool = False
    force: bool = False

    def record(self) -> dict[str, bool]:
        """Return the options that are set, as JSON values."""
        return {name: value for name, value in asdict(self).items() if value}

    @classmethod
    def read(cls, recorded: Mapping[str, Any]) -> RunOptions:
        """Return what `record` wrote."""
        return cls(bool(recorded.get("from_base")), bool(recorded.get("force")))
