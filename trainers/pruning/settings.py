"""Section `prune`: how long what nobody needs any more is kept."""

from __future__ import annotations

from pydantic import BaseModel, Field


class PruneSettings(BaseModel, frozen=True, extra="forbid"):
    """Section `prune`: how long the job `prune` keeps what nobody needs any more."""

    keep_days: int = Field(
        default=30,
        ge=1,
        le=3650,
        description="days: for so long a release stays after it was made or was last live, an artifact after it was made, a "
        "job's log after its last line",
    )
    keep_releases: int = Field(default=5, ge=1, le=10_000, description="so many of the newest releases stay, however old")
    log_bytes: int = Field(
        default=100_000_000,
        ge=1_000_000,
        description="bytes: a process's log that is larger is moved to NAME.log.1, over the one before, and begins anew",
    )
