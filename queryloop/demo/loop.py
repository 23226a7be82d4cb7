"""The loop of a demo on real processes: cold start, twice traffic, training and swap, then traffic on the last release."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from queryloop.demo.milestones import Counters, MilestoneError, run_job, wait_for_days, wait_for_events, wait_for_release
from queryloop.demo.plan import DemoPlan, Round
from queryloop.demo.report import Measured, ReleaseRecord, day_of
from queryloop.demo.stages import ReportShare, Stages
from queryloop.product.annotations import write_annotations
from queryloop.product.http_client import ServingClient
from queryloop.product.totals import ProductTotals
from queryloop.product.traffic import Traffic
from queryloop.product.world import World
from queryloop.settings import Settings
from queryloop.up.stack import Stack
from serving.releases.registry import list_releases, read_rollout
from trainers.jobs.ledger import Kind, Ledger

DAY_S = 86_400.0


@dataclass
class Demo:
    """What the stages of a demo share. `champions` are the ids of the releases that were live, in order."""

    plan: DemoPlan
    stack: Stack
    stages: Stages
    ledger: Ledger
    traffic: Traffic
    first_day: float
    champions: list[str] = field(default_factory=list)

    def day(self, number: int) -> float:
        """Event time at which a day of the calendar begins; day 0 is the first."""
        return self.first_day + number * DAY_S


def run_stack(settings: Settings, plan: DemoPlan, world: World, stages: Stages) -> Measured:
    """Start all processes, run the loop, stop them, and return what was measured."""
    with stages.stage("start"):
        write_annotations(world, settings.data.dir / "annotations.jsonl", plan.annotations)
        stack = Stack(settings, print_line=stages.print_line)
        stack.__enter__()
    try:
        return asyncio.run(_run_loop(plan, world, stack, stages))
    finally:
        stack.__exit__(None, None, None)


async def _run_loop(plan: DemoPlan, world: World, stack: Stack, stages: Stages) -> Measured:
    totals, first_day = ProductTotals(), _first_day(plan, datetime.now(UTC))
    product = stack.settings.product
    async with ServingClient(stack.urls.serving, totals, timeout_s=product.timeout_s) as client:
        traffic = Traffic(world, client, totals, product, first_day)
        demo = Demo(plan, stack, stages, Ledger(stack.settings.data.dir / "ledger.sqlite"), traffic, first_day)
        # A click without an impression goes to quarantine only a day later in event time.
        traffic.spoil_until = demo.day(plan.days - plan.last.days - 1)
        await _start_cold(demo)
        await _go_round(demo, "round 1", 0, plan.first)
        await _go_round(demo, "round 2", plan.first.days + 1, plan.second)
        counters = await _finish(demo)
    releases = _read_releases(stack.settings.data.dir, demo.champions)
    return Measured(world.seed, world, totals, releases, vars(counters), stages.spans, stages.started, stack.broker.describe())


async def _start_cold(demo: Demo) -> None:
    """Make the first release by supervised fine-tuning on the annotated lists."""
    with demo.stages.stage("cold start") as report_share:
        await _run_job(demo, "policy", report_share)
        await _go_live(demo)


async def _go_round(demo: Demo, name: str, first: int, size: Round) -> None:
    """Run days of traffic, train predictor, index and policy on the clicks, and swap the release while traffic goes on."""
    with demo.stages.stage(f"{name}: traffic") as report_share:
        await demo.traffic.run(demo.day(first + size.days), size.lists, lambda lists: report_share(lists / size.lists))
        # The last day is mature some hours into the next one.
        morning = demo.day(first + size.days) + demo.plan.morning_s
        await demo.traffic.run(morning, round(size.lists / size.days * demo.plan.morning_s / DAY_S))
        await _wait_for_sent(demo)
        days = [day_of(demo.day(first + number)) for number in range(size.days)]
        await wait_for_days(demo.stack.urls.worker, days)
    stop = asyncio.Event()
    trickle = asyncio.create_task(
        demo.traffic.trickle(stop, visits_a_second=demo.plan.trickle_visits_a_second, step_s=demo.plan.trickle_step_s)
    )
    try:
        await _learn(demo, name)
    finally:
        stop.set()
        await trickle


async def _learn(demo: Demo, name: str) -> None:
    """Run the three jobs one after the other, and swap to the new release if it passes the gate."""
    jobs: tuple[tuple[Kind, str], ...] = (("ctr", "click predictor"), ("index", "index"), ("policy", "policy"))
    for kind, stage in jobs:
        with demo.stages.stage(f"{name}: {stage}") as report_share:
            await _run_job(demo, kind, report_share)
    with demo.stages.stage(f"{name}: swap"):
        if not await _go_live(demo):
            demo.stages.print_line(f"{name}: the gate kept {demo.champions[-1]}")
            return
        release = demo.champions[-1]
        deadline = time.monotonic() + 30
        while demo.traffic.totals.shown[-1].release != release:
            if time.monotonic() > deadline:
                raise MilestoneError(f"no list from {release} after 30 s, although /readyz reports it as live")
            await asyncio.sleep(0.05)


async def _run_job(demo: Demo, kind: Kind, report_share: ReportShare) -> None:
    await run_job(demo.ledger, kind, lambda seconds: report_share(demo.stages.expect(seconds)))


async def _go_live(demo: Demo) -> bool:
    """Wait until serving answers from the champion; return whether it is a new one."""
    champion = read_rollout(demo.stack.settings.data.dir).champion
    if champion is None:
        raise MilestoneError("the policy job succeeded, but no release was promoted")
    if demo.champions and demo.champions[-1] == champion:
        return False
    await wait_for_release(demo.stack.urls.serving, champion)
    demo.champions.append(champion)
    return True


async def _finish(demo: Demo) -> Counters:
    """Run traffic on the last release, post all events that are left, and return the worker's totals once they are applied."""
    last = demo.plan.last
    with demo.stages.stage("last traffic") as report_share:
        await demo.traffic.run(demo.day(demo.plan.days), last.lists, lambda lists: report_share(lists / last.lists))
        await demo.traffic.finish()
        return await _wait_for_sent(demo)


async def _wait_for_sent(demo: Demo) -> Counters:
    """Wait until all that the product sent is applied. An error names the calls that failed: their events never arrive."""
    try:
        return await wait_for_events(demo.stack.urls.worker, demo.traffic.sent)
    except MilestoneError as error:
        raise MilestoneError("; ".join([str(error), *demo.traffic.totals.describe_failures()])) from None


def _first_day(plan: DemoPlan, now: datetime) -> float:
    """Return the event time at which the calendar begins, so that its last day is yesterday (UTC)."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today - timedelta(days=plan.days)).timestamp()


def _read_releases(data: Path, champions: list[str]) -> list[ReleaseRecord]:
    return [ReleaseRecord(one.id, one.gate or {}, one.id in champions) for one in list_releases(data)]
