"""Drops quarantine rows of one shard and records it: by the worker's HTTP, or by a command on a file that no worker holds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, Field

from streams.events.schema import Reason, printable, to_micros
from streams.runtime.audit import append_audit
from streams.store.shard import Shard

log = logging.getLogger(__name__)


class DropParams(BaseModel, frozen=True, extra="forbid"):
    """Which rows: those of a reason, with `before` only of events from before that time. `by` is who drops them."""

    reason: Reason
    before: AwareDatetime | None = None
    by: Annotated[str, Field(min_length=1, max_length=256)]


def drop_rows(shard: Shard, *, data_dir: Path, partition: int, params: DropParams) -> int:
    """Drop the rows, append a line to the data folder's audit file, and return their number. Call it on the shard's thread."""
    before_us = None if params.before is None else to_micros(params.before)
    dropped = shard.drop_quarantined(params.reason, before_us)
    by, reason, before = printable(params.by), str(params.reason), None if params.before is None else params.before.isoformat()
    log.warning("event=quarantine_dropped partition=%d reason=%s before=%s rows=%d by=%r", partition, reason, before, dropped, by)
    what = {"by": by, "partition": partition, "reason": reason, "before": before, "rows": dropped}
    append_audit(data_dir, "quarantine_drop", what)
    return dropped
