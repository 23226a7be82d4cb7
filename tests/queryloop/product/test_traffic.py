"""Traffic against a small HTTP server of the test's own: what arrives by the two documented calls is what the totals count."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from queryloop.product.clicks import list_click_probability
from queryloop.product.http_client import ServingClient
from queryloop.product.settings import ProductSettings
from queryloop.product.totals import ProductTotals, percentile
from queryloop.product.traffic import Traffic
from queryloop.product.world import draw_world

WORLD = draw_world(0)
START = 1_700_006_400.0
DAY = 86_400.0


@dataclass
class FakeServing:
    """Answers like serving, keeps everything that arrives, and can be made to fail."""

    impressions: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    calls: int = 0
    broken_every: int = 0
    empty: bool = False

    async def recommend(self, request: web.Request) -> web.Response:
        self.calls += 1
        if self.broken_every and self.calls % self.broken_every == 0:
            return web.json_response({"detail": "deadline"}, status=504)
        asked = await request.json()
        entity = WORLD.read(asked["query"]).entities[0]
        items = [f"{entity} {aspect.text}" for aspect in WORLD.topic_of(entity).aspects[:3]]
        shown = {**asked, "impression_id": f"i{self.calls}", "items": [] if self.empty else items, "release": "r0000"}
        self.impressions.append(shown)
        return web.json_response(shown)

    async def take(self, request: web.Request) -> web.Response:
        rejected: list[dict[str, Any]] = []
        if request.content_type == "application/x-ndjson":
            rejected.append({"index": 0, "reason": "malformed"})
        else:
            self.events.extend(json.loads(await request.read())["events"])
        self.refused += len(rejected)
        # As serving answers a batch whose every event it refuses: what the product spoils on purpose is no failed call.
        return web.json_response({"accepted": 0 if rejected else 1, "rejected": rejected}, status=422 if rejected else 202)


def drive(fake: FakeServing, settings: ProductSettings, script: Callable[[Traffic], Awaitable[None]]) -> ProductTotals:
    """Run `script` on traffic against the fake server and return the product's totals."""

    async def run() -> ProductTotals:
        app = web.Application()
        app.add_routes([web.post("/v1/recommend", fake.recommend), web.post("/v1/events", fake.take)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        totals = ProductTotals()
        try:
            async with ServingClient(f"http://127.0.0.1:{runner.addresses[0][1]}", totals) as client:
                await script(Traffic(WORLD, client, totals, settings, START))
        finally:
            await runner.cleanup()
        return totals

    return asyncio.run(run())


async def one_day(traffic: Traffic) -> None:
    await traffic.run(START + DAY, 600)
    await traffic.finish()


def by_kind(events: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    return {event["event_id"]: event for event in events if event["type"] == kind}


def test_what_arrives_is_what_the_totals_count() -> None:
    fake = FakeServing()
    totals = drive(fake, ProductSettings(spoiled_rate=0.05), one_day)
    unique = {event["event_id"] for event in fake.events}
    assert totals.answered == totals.impressions == len(fake.impressions) >= 600
    assert totals.queries == len(by_kind(fake.events, "query")) == totals.answered
    assert totals.clicks + totals.spoiled.total() == len(by_kind(fake.events, "click"))
    assert totals.duplicates == len(fake.events) - len(unique) > 0
    assert totals.counted + totals.spoiled.total() == len(unique) + len(fake.impressions)
    assert totals.emitted == len(fake.events) + len(fake.impressions)
    assert totals.refused == fake.refused > 0
    assert totals.failed == 0
    assert len(totals.latencies_ms) == totals.answered


def test_spoiled_events_have_the_fault_that_the_totals_count() -> None:
    fake = FakeServing()
    totals = drive(fake, ProductSettings(spoiled_rate=0.2), one_day)
    shown = {one["impression_id"]: one for one in fake.impressions}
    found: dict[str, int] = {}
    for click in by_kind(fake.events, "click").values():
        impression = shown.get(click["impression_id"])
        if impression is None:
            reason = "orphan_click"
        elif click["ts"] - impression["ts"] > DAY:
            reason = "late_click"
        elif click["position"] >= len(impression["items"]):
            reason = "position_out_of_range"
        elif click["item"] != impression["items"][click["position"]]:
            reason = "item_mismatch"
        else:
            assert click["ts"] >= impression["ts"]
            continue
        found[reason] = found.get(reason, 0) + 1
    assert found == dict(totals.spoiled)
    assert len(found) == 4


def test_no_event_is_posted_before_its_time_and_the_calendar_ends_where_it_should() -> None:
    fake, late = FakeServing(), []

    async def check(traffic: Traffic) -> None:
        await traffic.run(START + DAY / 2, 200)
        late.extend(event["ts"] for event in fake.events if event["ts"] > START + DAY / 2)
        assert traffic.now == START + DAY / 2
        await traffic.finish()

    drive(fake, ProductSettings(), check)
    assert late == []
    assert min(event["ts"] for event in fake.events) >= START


def test_clicks_follow_the_click_model() -> None:
    fake = FakeServing()

    async def many(traffic: Traffic) -> None:
        await traffic.run(START + DAY, 2500)
        await traffic.finish()

    totals = drive(fake, ProductSettings(spoiled_rate=0.0, duplicate_rate=0.0), many)
    clicked = {event["impression_id"] for event in fake.events if event["type"] == "click"}
    expected = sum(list_click_probability(WORLD, one.query, one.items) for one in totals.shown)
    assert len(clicked) == pytest.approx(expected, abs=4 * expected**0.5)


def test_a_call_that_fails_is_counted_and_the_visit_goes_on() -> None:
    fake = FakeServing(broken_every=10)
    totals = drive(fake, ProductSettings(), one_day)
    assert totals.failed == fake.calls // 10 > 0
    assert totals.failures.total() == totals.failed
    assert totals.answered == fake.calls - totals.failed
    assert "504" in next(iter(totals.failures))


def test_an_empty_list_is_answered_but_no_impression() -> None:
    totals = drive(FakeServing(empty=True), ProductSettings(), one_day)
    assert totals.answered > 0 == totals.impressions
    assert totals.clicks == 0


def test_a_trickle_goes_on_until_the_stop_is_set() -> None:
    fake = FakeServing()

    async def drip(traffic: Traffic) -> None:
        stop = asyncio.Event()
        running = asyncio.create_task(traffic.trickle(stop, visits_a_second=200.0, step_s=30.0))
        while len(fake.impressions) < 30:
            await asyncio.sleep(0.01)
        stop.set()
        await running
        assert traffic.now > START
        await traffic.finish()

    totals = drive(fake, ProductSettings(spoiled_rate=0.0), drip)
    assert totals.failed == 0
    assert totals.answered == len(fake.impressions) >= 30
    assert totals.queries == len(by_kind(fake.events, "query"))


def test_a_server_that_is_down_is_a_failed_call() -> None:
    async def ask() -> ProductTotals:
        totals = ProductTotals()
        async with ServingClient("http://127.0.0.1:9", totals) as client:
            assert await client.recommend({"query": "x"}) is None
        return totals

    assert asyncio.run(ask()).failed == 1


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0), percentile([], 0.5)) == (
        50.0,
        99.0,
        100.0,
        0.0,
    )
