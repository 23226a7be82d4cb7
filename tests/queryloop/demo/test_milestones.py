"""What the demo waits for: sums over shards, and waits that end with a reason instead of hanging."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from queryloop.demo.milestones import MilestoneError, run_job, sum_shards, wait_for_days, wait_for_events, wait_for_release
from trainers.jobs.ledger import Ledger, State


def shard(events: int, days: list[str], **quarantined: int) -> dict[str, Any]:
    """One shard as the worker's /status has it."""
    return {
        "events": events,
        "counted": events - 2,
        "duplicates": 1,
        "pending": 1,
        "quarantined": quarantined,
        "days_exported": days,
    }


def against(status: list[dict[str, Any]], ready: list[dict[str, Any]], use: Callable[[str], Awaitable[Any]]) -> Any:
    """Run `use` against a server that answers /status and /readyz with these in turn, the last one for ever."""

    async def answer(request: web.Request) -> web.Response:
        answers = status if request.path == "/status" else ready
        return web.json_response(answers.pop(0) if len(answers) > 1 else answers[0])

    async def run() -> Any:
        app = web.Application()
        app.add_routes([web.get("/status", answer), web.get("/readyz", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            return await use(f"http://127.0.0.1:{runner.addresses[0][1]}")
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_counters_are_sums_and_a_day_is_there_when_every_shard_with_events_has_it() -> None:
    empty = {**shard(0, []), "counted": 0, "duplicates": 0, "pending": 0}
    counters = sum_shards([shard(10, ["a", "b"], late_click=1), shard(5, ["b", "c"], late_click=2, invalid=1), empty])
    assert (counters.events, counters.counted, counters.duplicates, counters.pending) == (15, 11, 2, 2)
    assert counters.quarantined == {"late_click": 3, "invalid": 1}
    assert counters.days == {"b"}
    assert sum_shards([]).days == frozenset()


def test_it_waits_until_the_events_are_applied() -> None:
    status = [{"shards": []}, {"shards": [shard(3, [])]}, {"shards": [shard(8, [])]}]
    counters = against(status, [], lambda url: wait_for_events(url, 8))
    assert counters.events == 8


def test_a_wait_in_vain_says_what_did_not_happen() -> None:
    with pytest.raises(MilestoneError, match="the worker has applied 8 events; it has applied 3"):
        against([{"shards": [shard(3, [])]}], [], lambda url: wait_for_events(url, 8, deadline_s=0.3))
    with pytest.raises(MilestoneError, match="the lake holds the days x to x"):
        against([{"shards": [shard(3, [])]}], [], lambda url: wait_for_days(url, ["x"], deadline_s=0.3))


def test_it_waits_until_a_release_is_live_and_repeats_servings_reason() -> None:
    ready = [{"ready": True, "release": "r0000", "error": None}, {"ready": True, "release": "r0001", "error": None}]
    against([], ready, lambda url: wait_for_release(url, "r0001"))
    broken = [{"ready": True, "release": "r0000", "error": "r0001: bad checksum"}]
    with pytest.raises(MilestoneError, match="bad checksum"):
        against([], broken, lambda url: wait_for_release(url, "r0001"))


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(MilestoneError, match="nothing listens there"):
        asyncio.run(wait_for_events("http://127.0.0.1:9", 1, deadline_s=0.3))


def finish_soon(ledger: Ledger, state: State, outcome: dict[str, Any]) -> None:
    """Do what the daemon does with a request."""
    (run,) = ledger.requested()
    ledger.start(run.id, 1)
    ledger.finish(run.id, state, outcome)


@pytest.mark.parametrize("state", [State.FAILED, State.SKIPPED])
def test_a_job_that_did_not_succeed_is_an_error_with_its_reason(tmp_path: Path, state: State) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")

    async def run() -> None:
        asyncio.get_running_loop().call_later(0.1, finish_soon, ledger, state, {"detail": "no clicks"})
        await run_job(ledger, "ctr", lambda seconds: None)

    with pytest.raises(MilestoneError, match=f"ctr job {state}: no clicks"):
        asyncio.run(run())


def test_a_job_that_succeeded_is_returned_with_its_outcome(tmp_path: Path) -> None:
    ledger, told = Ledger(tmp_path / "ledger.sqlite"), []

    async def run() -> Any:
        asyncio.get_running_loop().call_later(0.1, finish_soon, ledger, State.SUCCEEDED, {"auc": 0.7})
        return await run_job(ledger, "ctr", told.append)

    assert asyncio.run(run()).outcome == {"auc": 0.7}
    assert told
