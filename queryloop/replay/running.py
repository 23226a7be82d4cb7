"""The running system that a replay sends to: how late its clock is before, and what became of the lines afterwards.

A shard refuses what is older than its retention, counted back from the latest event that it has seen. A log of last year
sent to a live system is therefore refused whole, and only its shards know that before it is sent.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams.api.client import HttpError, get_json
from streams.emitter.record_batches import partition_of
from streams.events.rules import DAY_US
from streams.events.schema import Event, Reason

if TYPE_CHECKING:
    from queryloop.settings import Settings

TIMEOUT_S = 10.0
POLL_S = 0.2
STALL_S = 120.0
NUMBERS = ("events", "counted", "duplicates", "pending")


@dataclass(frozen=True)
class RunningSystem:
    """The totals of each shard (`streams.api.fan_out.describe_totals`) at one moment, and the worker's address."""

    url: str
    retention_days: int
    partitions: int
    shards: Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What the shards counted while a replay's lines were applied, whoever sent them; `applied` says that all its lines were."""

    applied: bool
    events: int
    counted: int
    duplicates: int
    pending: int
    quarantined: dict[str, int]


@dataclass
class AgeCheck:
    """Tells which events a running system will refuse as too old, given in the order in which they are sent.

    Each event moves its shard's clock on, as it will there, but never beyond `now_us`.
    """

    running: RunningSystem
    now_us: int
    _latest_us: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._latest_us = {number: round((shard["latest_ts"] or 0) * 1e6) for number, shard in self.running.shards.items()}

    def find_fault(self, event: Event) -> tuple[Reason, str] | None:
        """Return why its shard will refuse the event, None where it will not for its age."""
        if not self._is_too_old(event):
            return None
        return Reason.TOO_OLD, f"ts: more than {self.running.retention_days} days before the latest event of the running system"

    def _is_too_old(self, event: Event) -> bool:
        partition = partition_of(event.session_id, self.running.partitions)
        latest = self._latest_us[partition] = max(self._latest_us.get(partition, 0), min(event.ts_us, self.now_us))
        return 0 < self.running.retention_days * DAY_US < latest - event.ts_us


def find_running(settings: Settings, url: str, topic_id: str | None = None) -> RunningSystem | str:
    """Return the running system of the worker at `url`, or why there is none. With a `topic_id` it must count that topic."""
    try:
        shards = _ask(settings, url, "metrics")
    except HttpError as error:
        return f"no worker answers at {url} ({error.reason})"
    totals = {number: shard["status"] for number, shard in shards.items()}
    if topic_id and any(shard["topic_id"] not in (None, topic_id) for shard in totals.values()):
        return f"the worker at {url} counts another topic"
    return RunningSystem(url, settings.worker.retention_days, settings.kafka.partitions, totals)


def await_outcome(
    settings: Settings,
    before: RunningSystem,
    positions: Mapping[int, int],
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], object] = time.sleep,
) -> Outcome:
    """Wait until the worker has applied the log up to these offsets, or nothing for STALL_S; return what its totals gained."""
    moved_at, last, applied = clock(), -1, False
    while not applied and clock() - moved_at <= STALL_S:
        offsets = _read_offsets(settings, before.url)
        applied = all(offsets.get(partition, -1) >= position for partition, position in positions.items())
        if (total := sum(offsets.values())) > last:
            moved_at, last = clock(), total
        if not applied:
            wait(POLL_S)
    after = find_running(settings, before.url)
    return subtract(before.shards, after.shards if isinstance(after, RunningSystem) else {}, applied)


def subtract(before: Mapping[int, Mapping[str, Any]], after: Mapping[int, Mapping[str, Any]], applied: bool) -> Outcome:
    """Return what the totals of all shards gained from one moment to a later one; shards that are gone are left out."""
    gained, quarantined = Counter[str](), Counter[str]()
    for number, shard in after.items():
        earlier = before.get(number, {})
        gained.update({name: shard[name] - earlier.get(name, 0) for name in NUMBERS})
        quarantined.update(shard["quarantined"])
        quarantined.subtract(earlier.get("quarantined", {}))
    numbers = {name: gained[name] for name in NUMBERS}
    return Outcome(
        applied, **numbers, quarantined={reason: number for reason, number in sorted(quarantined.items()) if number > 0}
    )


def _read_offsets(settings: Settings, url: str) -> dict[int, int]:
    try:
        return {number: shard["next_offset"] or 0 for number, shard in _ask(settings, url, "lag").items()}
    except HttpError:  # a worker that restarts; the caller's patience decides
        return {}


def _ask(settings: Settings, url: str, read: str) -> dict[int, dict[str, Any]]:
    answer = get_json(f"{url}/v1/{read}", settings.worker.key, {"partial": "true"}, timeout_s=TIMEOUT_S)
    return {int(number): shard for number, shard in answer.get("shards", {}).items()}
