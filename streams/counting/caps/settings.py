"""What one session or one user weighs in the counts (section `counting`)."""

from __future__ import annotations

from pydantic import BaseModel, Field


class CountingSettings(BaseModel, frozen=True, extra="forbid"):
    """How much one session or one user weighs in windows and co-occurrence, so that a crawler does not drown all others."""

    session_cap: int = Field(
        default=20,
        ge=0,
        description="lists of one query that count in the windows for one session on one UTC day, the first by time, and equal "
        "pairs of queries in co-occurrence; later ones, and clicks on them, are left out and reported. 0: off, all count",
    )
    user_cap: int = Field(
        default=0,
        ge=0,
        description="the same for one user_id in each shard: a user's sessions lie in several shards, so up to this many times "
        "kafka.partitions count in all. 0: off",
    )
