"""`queryloop demo`: the whole loop twice over, on real parts, against a simulated product; then what it was worth."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from rich import box
from rich.console import Console
from rich.table import Table

from queryloop.demo.milestones import Counters, MilestoneError, run_job, wait_for_days, wait_for_events, wait_for_release
from queryloop.demo.plan import DemoPlan, Round, choose_plan, make_settings
from queryloop.demo.report import Measured, ReleaseRecord, day_of, describe_gate, summarise, write_report
from queryloop.demo.stages import Stages, Tell
from queryloop.exits import Exit
from queryloop.product.account import Account
from queryloop.product.annotations import write_annotations
from queryloop.product.http_client import Door
from queryloop.product.traffic import Traffic
from queryloop.product.world import World, draw_world
from serving.releases.registry import list_releases, read_rollout
from trainers.jobs.ledger import Kind, Ledger

if TYPE_CHECKING:
    from queryloop.settings import Settings
    from queryloop.up.machine import Stack

DAY_S = 86_400.0


@dataclass
class Demo:
    """What the stages share. `champions` are the releases that were live, in order."""

    plan: DemoPlan
    stack: Stack
    stages: Stages
    ledger: Ledger
    http: aiohttp.ClientSession
    traffic: Traffic
    first_day: float
    champions: list[str] = field(default_factory=list)

    def day(self, number: int) -> float:
        """Event time at which a day of the calendar begins; day 0 is the first."""
        return self.first_day + number * DAY_S


def main(settings: Settings, *, seed: int, out: Path, as_json: bool = False, quick: bool = False) -> int:
    """Run the demo and return its exit code; prints a table, or the report's JSON, to stdout."""
    from queryloop.up.machine import UpError

    plan, world = choose_plan(quick=quick), draw_world(seed)
    work = Path(tempfile.mkdtemp(prefix="queryloop-demo-"))
    with Stages(plan.expected) as stages, _interruptible():
        try:
            measured = _run_stack(make_settings(settings, plan, work), plan, world, stages)
            with stages.stage("report"):
                # Without this stage itself: how long it takes is not known before it is written.
                report = write_report(replace(measured, spans=stages.spans[:-1]), out)
        except (MilestoneError, UpError) as error:
            stages.say(f"queryloop demo: stage “{stages.current}” failed: {error}\nlogs: {work / 'logs'}")
            return Exit.FAILED
        except (KeyboardInterrupt, asyncio.CancelledError):
            stages.say(f"stopped in stage “{stages.current}”; nothing is left running")
            shutil.rmtree(work, ignore_errors=True)
            return Exit.INTERRUPTED
    _show(report, measured, out, as_json=as_json)
    if wrong := find_differences(measured):
        print("queryloop demo: " + "; ".join(wrong) + f"\nlogs: {work / 'logs'}", file=sys.stderr)
        return Exit.FAILED
    shutil.rmtree(work, ignore_errors=True)
    return Exit.DONE


def find_differences(measured: Measured) -> list[str]:
    """Return what the loop counted otherwise than the product's own account, and calls that failed; empty when all is well."""
    account, counters = measured.account, measured.counters
    pairs = {
        "failed calls": (account.failed, 0),
        "events counted": (counters["counted"], account.counted),
        "duplicates": (counters["duplicates"], account.duplicates),
        "quarantined": (counters["quarantined"], dict(account.spoiled)),
        "clicks still waiting": (counters["pending"], 0),
    }
    wrong = [f"{name}: {found}, expected {expected}" for name, (found, expected) in pairs.items() if found != expected]
    return wrong + _describe_failures(account)


def _describe_failures(account: Account) -> list[str]:
    """Return why calls failed, the most frequent reasons first."""
    return [f"{reason} ({count} times)" for reason, count in account.failures.most_common(3)]


def _run_stack(settings: Settings, plan: DemoPlan, world: World, stages: Stages) -> Measured:
    """Start all processes, run the loop, stop them, and return what was measured."""
    from queryloop.up.machine import Stack

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
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as http,
        Door(stack.urls.serving, account, timeout_s=product.timeout_s) as door,
    ):
        traffic = Traffic(world, door, account, product, first_day)
        demo = Demo(plan, stack, stages, Ledger(stack.settings.data.dir / "ledger.sqlite"), http, traffic, first_day)
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
        await wait_for_days(demo.http, demo.stack.urls.worker, days)
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
    await wait_for_release(demo.http, demo.stack.urls.serving, champion)
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
        return await wait_for_events(demo.http, demo.stack.urls.worker, demo.traffic.sent)
    except MilestoneError as error:
        raise MilestoneError("; ".join([str(error), *_describe_failures(demo.traffic.account)])) from None


def _first_day(plan: DemoPlan, now: datetime) -> float:
    """Return the event time at which the calendar begins, so that its last day is yesterday (UTC)."""
    today = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (today - timedelta(days=plan.days)).timestamp()


def _read_releases(data: Path, champions: list[str]) -> list[ReleaseRecord]:
    return [ReleaseRecord(one.id, one.gate or {}, one.id in champions) for one in list_releases(data)]


@contextmanager
def _interruptible() -> Iterator[None]:
    """Stop in order on SIGTERM and SIGHUP as on Ctrl-C."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(report: dict[str, Any], measured: Measured, out: Path, *, as_json: bool) -> None:
    """Print the report to stdout."""
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False)
    table = Table(title=f"Queryloop demo, seed {measured.seed}", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("release", "true rate", "AEC predictor", "AEC judge", "well formed", "tokens", "repeats", "gate"):
        table.add_column(name, justify="left" if name in ("release", "gate") else "right")
    for one in report["releases"]:
        numbers = [one[name] for name in ("true_click_rate", "aec_predictor", "aec_judge", "well_formed", "mean_tokens")]
        cells = ["–" if value is None else f"{value:.3f}" for value in [*numbers, one["duplicate_rate"]]]
        table.add_row(one["id"], *cells, describe_gate(one["gate"]).partition(":")[0])
    console.print(table)
    for one in report["releases"]:
        for reason in one["gate"].get("reasons", []):
            console.print(f"{one['id']}: {reason}", markup=False, soft_wrap=True)
    requests, events = report["requests"], report["events"]
    console.print(f"{requests['answered']} lists answered, {requests['failed']} calls failed, ", end="", markup=False)
    console.print(f"p50 {requests['p50_ms']} ms, p99 {requests['p99_ms']} ms", markup=False)
    console.print(f"{events['counted']} events counted; the product's own account says {measured.account.counted}", markup=False)
    console.print(summarise(report), markup=False)
    console.print(f"{out / 'report.html'} and report.json in {sum(report['seconds'].values()):.0f} s", markup=False)
