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
from queryloop.demo.stages import Stages, Tell
from queryloop.product.annotations import write_annotations
from queryloop.product.http_client import Door
from queryloop.product.totals import Account
from queryloop.product.traffic import Traffic
from queryloop.product.world import World
from queryloop.settings import Settings
from queryloop.up.stack import Stack
from serving.releases.registry import list_releases, read_rollout
from trainers.jobs.ledger import Kind, Ledger

DAY_S = 86_400.0


@dataclass
class Demo:
    """What the stages share. `champions` are the releases that were live, in order."""

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
        stack = Stack(settings, say=stages.say)
        stack.__enter__()
    try:
        return asyncio.run(_run_loop(plan, world, stack, stages))
    finally:
        stack.__exit__(None, None, None)


async def _run_loop(plan: DemoPlan, world: World, stack: Stack, stages: Stages) -> Measured:
    account, first_day = Account(), _first_day(plan, datetime.now(UTC))
    product = stack.settings.product
    async with Door(stack.urls.serving, account, timeout_s=product.timeout_s) as door:
        traffic = Traffic(world, door, account, product, first_day)
        demo = Demo(plan, stack, stages, Ledger(stack.settings.data.dir / "ledger.sqlite"), traffic, first_day)
        # An event that never finds its impression is only found out a day later in event time.
        traffic.spoil_until = demo.day(plan.days - plan.last.days - 1)
        await _start_cold(demo)
        await _go_round(demo, "round 1", 0, plan.first)
        await _go_round(demo, "round 2", plan.first.days + 1, plan.second)
        counters = await _finish(demo)
    releases = _read_releases(stack.settings.data.dir, demo.champions)
    return Measured(world.seed, world, account, releases, vars(counters), stages.spans, stages.started, stack.broker.describe())


async def _start_cold(demo: Demo) -> None:
    """SFT from the editors' lists gives the first release."""
    with demo.stages.stage("cold start") as tell:
        await _run_job(demo, "policy", tell)
        await _go_live(demo)


async def _go_round(demo: Demo, name: str, first: int, size: Round) -> None:
    """Days of traffic, then predictor, index and policy from what was clicked, and the swap, while traffic goes on."""
    with demo.stages.stage(f"{name}: traffic") as tell:
        await demo.traffic.run(demo.day(first + size.days), size.lists, lambda lists: tell(lists / size.lists))
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
    """Run the three jobs one after the other and let the new release go live if the gate lets it pass."""
    jobs: tuple[tuple[Kind, str], ...] = (("ctr", "click predictor"), ("index", "index"), ("policy", "policy"))
    for kind, stage in jobs:
        with demo.stages.stage(f"{name}: {stage}") as tell:
            await _run_job(demo, kind, tell)
    with demo.stages.stage(f"{name}: swap"):
        if not await _go_live(demo):
            demo.stages.say(f"{name}: the gate kept {demo.champions[-1]}")
            return
        release = demo.champions[-1]
        deadline = time.monotonic() + 30
        while demo.traffic.account.shown[-1].release != release:
            if time.monotonic() > deadline:
                raise MilestoneError(f"no list from {release} after 30 s, although serving says that it is live")
            await asyncio.sleep(0.05)


async def _run_job(demo: Demo, kind: Kind, tell: Tell) -> None:
    await run_job(demo.ledger, kind, lambda seconds: tell(demo.stages.expect(seconds)))


async def _go_live(demo: Demo) -> bool:
    """Wait until the champion answers; return whether it is a new one."""
    champion = read_rollout(demo.stack.settings.data.dir).champion
    if champion is None:
        raise MilestoneError("the policy job succeeded, but no release was promoted")
    if demo.champions and demo.champions[-1] == champion:
        return False
    await wait_for_release(demo.stack.urls.serving, champion)
    demo.champions.append(champion)
    return True


async def _finish(demo: Demo) -> Counters:
    """Traffic on the last release; then everything that is still on its way, and the worker's account of it all."""
    last = demo.plan.last
    with demo.stages.stage("last traffic") as tell:
        await demo.traffic.run(demo.day(demo.plan.days), last.lists, lambda lists: tell(lists / last.lists))
        await demo.traffic.finish()
        return await _wait_for_sent(demo)


async def _wait_for_sent(demo: Demo) -> Counters:
    """Wait until all that the product sent is applied. What a call that failed did not bring is not, so that is said too."""
    try:
        return await wait_for_events(demo.stack.urls.worker, demo.traffic.sent)
    except MilestoneError as error:
        raise MilestoneError("; ".join([str(error), *demo.traffic.account.describe_failures()])) from None


def _first_day(plan: DemoPlan, now: datetime) -> float:
    """Return the event time at which the calendar begins, so that its last day is yesterday (UTC)."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today - timedelta(days=plan.days)).timestamp()


def _read_releases(data: Path, champions: list[str]) -> list[ReleaseRecord]:
    return [ReleaseRecord(one.id, one.gate or {}, one.id in champions) for one in list_releases(data)]
