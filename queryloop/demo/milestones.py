"""What the demo waits for: events applied, days in the lake, the end of a job, a live release. Each wait has a deadline."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from streams.api.client import HttpError, get_json
from trainers.jobs.ledger import Kind, Ledger, Run

POLL_S = 0.25
Found = TypeVar("Found")


class MilestoneError(RuntimeError):
    """Something did not happen in time, or failed; the text says what, and names the log where there is one."""


@dataclass(frozen=True)
class Counters:
    """The worker's totals over its shards. `days` are those that every shard has exported."""

    events: int
    counted: int
    duplicates: int
    pending: int
    quarantined: dict[str, int]
    days: frozenset[str]


async def read_counters(worker: str) -> Counters:
    """Ask the worker for its totals. Raises HttpError when it does not answer."""
    return sum_shards((await asyncio.to_thread(get_json, f"{worker}/status", None))["shards"])


def sum_shards(shards: list[dict[str, Any]]) -> Counters:
    """Return the sums over the shards; a day counts as exported when every shard that saw events has it."""
    quarantined: Counter[str] = Counter()
    for shard in shards:
        quarantined.update(shard["quarantined"])
    exported = [frozenset(shard["days_exported"]) for shard in shards if shard["events"]]
    totals = {name: sum(int(shard[name]) for shard in shards) for name in ("events", "counted", "duplicates", "pending")}
    days = frozenset.intersection(*exported) if exported else frozenset()
    return Counters(**totals, quarantined=dict(quarantined), days=days)


async def wait_for_events(worker: str, events: int, deadline_s: float = 60.0) -> Counters:
    """Return the worker's totals once it has applied `events` events."""

    last: Counters | None = None

    async def applied() -> Counters | None:
        nonlocal last
        last = await read_counters(worker)
        return last if last.events >= events else None

    try:
        return await _wait(applied, deadline_s, f"the worker has applied {events} events")
    except MilestoneError as error:
        raise MilestoneError(f"{error}; it has applied {last.events if last else 'none'}") from None


async def wait_for_days(worker: str, days: list[str], deadline_s: float = 60.0) -> None:
    """Return once every shard has exported these days to the lake."""

    async def exported() -> bool | None:
        return set(days) <= (await read_counters(worker)).days or None

    await _wait(exported, deadline_s, f"the lake holds the days {days[0]} to {days[-1]}")


async def wait_for_release(serving: str, release: str, deadline_s: float = 240.0) -> None:
    """Return once serving answers from this release. Raises MilestoneError with its reason when it cannot load it.

    Two cores that others use too have taken 60 s to load one."""

    async def live() -> bool | None:
        state = await asyncio.to_thread(get_json, f"{serving}/readyz", None)
        if state.get("error"):
            raise MilestoneError(f"serving keeps {state['release']}: {state['error']}")
        return state.get("release") == release or None

    await _wait(live, deadline_s, f"serving answers from {release}")


async def run_job(ledger: Ledger, kind: Kind, report_progress: Callable[[float], None], deadline_s: float = 600.0) -> Run:
    """Request a run of a job and return it once it succeeded; `report_progress` gets the seconds since the request."""
    number, begun = ledger.request(kind), time.monotonic()

    async def ended() -> Run | None:
        report_progress(time.monotonic() - begun)
        run = ledger.run(number)
        return run if run.ended else None

    run = await _wait(ended, deadline_s, f"the {kind} job has ended")
    if run.state != "succeeded":
        reason = run.outcome.get("detail") or "it gave no reason"
        raise MilestoneError(f"the {kind} job {run.state}: {reason}; its log is {run.log}")
    return run


async def _wait(look: Callable[[], Awaitable[Found | None]], deadline_s: float, what: str) -> Found:
    """Poll `look` until it returns something else than None; a server that does not answer is asked again."""
    deadline, trouble = time.monotonic() + deadline_s, ""
    while time.monotonic() < deadline:
        try:
            if (found := await look()) is not None:
                return found
        except HttpError as error:
            trouble = f" (last: {type(error).__name__} {error})"
        await asyncio.sleep(POLL_S)
    raise MilestoneError(f"waited {deadline_s:.0f} s in vain until {what}{trouble}")
