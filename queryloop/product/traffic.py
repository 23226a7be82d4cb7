"""Traffic as a product makes it: visits on a simulated calendar, each asking for lists over HTTP, reading them and clicking.

Event time runs from the caller's `start` to its `end` whatever the real speed; every call and event carries its `ts`. The
users click by the model of `queryloop.product.clicks`, of which the loop sees only the clicks.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from queryloop.product.clicks import item_probabilities
from queryloop.product.event_queue import EventQueue
from queryloop.product.http_client import ServingClient
from queryloop.product.settings import ProductSettings
from queryloop.product.totals import ProductTotals, Shown
from queryloop.product.visits import first_query, next_query
from queryloop.product.world import World

# Clicks lie well inside the attribution window of 24 h, those that are late on purpose after it.
LONGEST_DELAY_S, LATE_S = 12 * 3600.0, 26 * 3600.0
SPOILED = ("orphan_click", "late_click", "position_out_of_range", "item_mismatch", "malformed")


class Traffic:
    """One product's users. `now` is the event time that its calendar has reached, in seconds since the epoch."""

    def __init__(
        self, world: World, client: ServingClient, totals: ProductTotals, settings: ProductSettings, start: float
    ) -> None:
        self.world, self.totals, self.settings, self.now = world, totals, settings, start
        self._rng = random.Random(f"traffic {world.seed}")
        self._client = client
        self._queue = EventQueue(client, totals, self._rng, batch=settings.post_events, duplicate_rate=settings.duplicate_rate)
        self._visits = 0
        # Unusable events are sent only while they are sure to reach quarantine before the calendar ends.
        self.spoil_until = float("inf")

    async def run(self, end: float, lists: int, report_progress: Callable[[int], None] = lambda lists: None) -> None:
        """Run visits until about `lists` lists were asked for, their starts spread evenly from `now` to `end` in event time."""
        first, start, asked = len(self.totals.shown), self.now, 0
        running: set[asyncio.Task[int]] = set()
        while asked < lists or running:
            while asked + len(running) < lists and len(running) < self.settings.concurrency:
                self.now = max(self.now, start + (end - start) * min(1.0, (asked + len(running)) / lists))
                running.add(asyncio.create_task(self._visit(self.now)))
            done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            asked += sum(task.result() for task in done)
            await self._queue.post_due(self.now)
            report_progress(len(self.totals.shown) - first)
        self.now = end
        await self._queue.post_all(self.now)

    async def trickle(self, stop: asyncio.Event, *, visits_a_second: float, step_s: float) -> None:
        """Run single visits at a steady real rate until `stop` is set; each moves the calendar on by `step_s`."""
        running: set[asyncio.Task[int]] = set()
        while not stop.is_set():
            self.now += step_s
            running.add(asyncio.create_task(self._visit(self.now)))
            await self._queue.post_all(self.now)
            await _wait(stop, 1.0 / visits_a_second)
            running -= _collect(running)
        await asyncio.gather(*running)
        await self._queue.post_all(self.now)

    @property
    def sent(self) -> int:
        """Events that are in Kafka by now if every call succeeded: impressions, and what was posted."""
        return self.totals.emitted - len(self._queue)

    async def finish(self) -> None:
        """Post all events that are still waiting, whatever their event time."""
        await self._queue.post_all()

    async def _visit(self, start: float) -> int:
        """Run one visit; return the number of lists it asked for."""
        self._visits += 1
        rng = random.Random(f"visit {self.world.seed} {self._visits}")
        session, ts, lists = f"s{self.world.seed}-{self._visits}", start, 0
        query, source = first_query(self.world, rng), "user"
        while True:
            lists += 1
            self._put_query(session, lists, ts, query, source)
            clicked = await self._request_list(rng, session, lists, ts, query)
            follow = self._choose_next(rng, query, clicked)
            if follow is None or lists >= self.settings.longest_visit:
                return lists
            (query, source), ts = follow, ts + rng.lognormvariate(0.0, 0.5) * self.settings.pause_median_s

    def _choose_next(self, rng: random.Random, query: str, clicked: list[str]) -> tuple[str, str] | None:
        if clicked and rng.random() < self.settings.chase_rate:
            return clicked[0], "recommendation"
        return (next_query(self.world, rng, query), "user") if rng.random() < self.settings.follow_rate else None

    def _put_query(self, session: str, step: int, ts: float, query: str, source: str) -> None:
        self.totals.queries += 1
        event = {"type": "query", "event_id": f"{session}-q{step}", "ts": ts, "session_id": session, "query": query}
        self._queue.put({**event, "source": source})

    async def _request_list(self, rng: random.Random, session: str, step: int, ts: float, query: str) -> list[str]:
        """Ask for a list, click on it by the click model, and return the clicked items."""
        answer = await self._client.recommend({"task": self.settings.task, "query": query, "session_id": session, "ts": ts})
        if answer is None:
            return []
        items = tuple(answer["items"])
        self.totals.shown.append(Shown(ts, time.time(), answer["release"], query, items))
        probabilities = item_probabilities(self.world, query, items)
        positions = [position for position, p in enumerate(probabilities) if rng.random() < p]
        for position in positions:
            self._click(rng, self._make_click(session, f"{step}-{position}", answer, ts, query, position))
        if items and rng.random() < self.settings.spoiled_rate and ts < self.spoil_until:
            await self._spoil(rng, self._make_click(session, f"{step}-x", answer, ts, query, 0))
        return [items[position] for position in positions]

    def _make_click(
        self, session: str, name: str, answer: dict[str, Any], ts: float, query: str, position: int
    ) -> dict[str, Any]:
        shown = {"impression_id": answer["impression_id"], "position": position, "item": answer["items"][position]}
        return {"type": "click", "event_id": f"{session}-c{name}", "ts": ts, "session_id": session, "query": query, **shown}

    def _click(self, rng: random.Random, click: dict[str, Any]) -> None:
        settings = self.settings
        delay = settings.click_delay_median_s * rng.lognormvariate(0.0, settings.click_delay_spread)
        self.totals.clicks += 1
        self._queue.put({**click, "ts": click["ts"] + min(delay, LONGEST_DELAY_S)})

    async def _spoil(self, rng: random.Random, click: dict[str, Any]) -> None:
        """Send an event that cannot be used, and count it under its expected quarantine reason."""
        kind = rng.choice(SPOILED)
        if kind == "malformed":
            await self._queue.post_malformed()
            return
        wrong: dict[str, dict[str, Any]] = {
            "orphan_click": {"impression_id": f"no-{click['event_id']}"},
            "late_click": {"ts": click["ts"] + LATE_S},
            "position_out_of_range": {"position": 99, "item": None},
            "item_mismatch": {"item": "what nobody was shown"},
        }
        self.totals.spoiled[kind] += 1
        self._queue.put({**click, **wrong[kind]})


def _collect(running: set[asyncio.Task[int]]) -> set[asyncio.Task[int]]:
    """Return the visits that are over; raises what one of them raised."""
    over = {task for task in running if task.done()}
    for task in over:
        task.result()
    return over


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Return after some seconds, or as soon as `stop` is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return
