"""The events that the product has to post, sent in batches once their event time is reached."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from typing import Any

from queryloop.product.http_client import ServingClient
from queryloop.product.totals import ProductTotals

MALFORMED_LINES = (b'{"type":"click","event_id":"broken', b"\xff\xfe not even text", b'["an array"]', b'{"type":"query","ts":0}')
"""Lines that are no event: truncated, not UTF-8, not an object, fields missing."""


class EventQueue:
    """Events ordered by event time. Some are posted twice, as careless clients do."""

    def __init__(
        self, client: ServingClient, totals: ProductTotals, rng: random.Random, *, batch: int, duplicate_rate: float
    ) -> None:
        self._client, self._totals, self._rng = client, totals, rng
        self._batch, self._duplicate_rate = batch, duplicate_rate
        self._order = itertools.count()
        self._waiting: list[tuple[float, int, dict[str, Any]]] = []
        self._due: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._due)

    def put(self, event: dict[str, Any]) -> None:
        """Keep an event until its `ts`; with probability `duplicate_rate` also a copy that is posted up to two minutes later."""
        heapq.heappush(self._waiting, (event["ts"], next(self._order), event))
        if self._rng.random() < self._duplicate_rate:
            heapq.heappush(self._waiting, (event["ts"] + self._rng.uniform(0.0, 120.0), next(self._order), event))
            self._totals.duplicates += 1

    async def post_due(self, now: float) -> None:
        """Post what is due at event time `now` in full batches; a rest that does not fill one is kept."""
        self._move_due(now)
        while len(self._due) >= self._batch:
            await self._post(self._batch)

    async def post_all(self, now: float = math.inf) -> None:
        """Post everything that is due at event time `now`."""
        self._move_due(now)
        while self._due:
            await self._post(self._batch)

    async def post_malformed(self) -> None:
        """Post one line that is no event."""
        # Not `refused += await ...`: that reads the old value before it waits.
        refused = await self._client.send_lines(self._rng.choice(MALFORMED_LINES) + b"\n")
        self._totals.refused += refused

    def _move_due(self, now: float) -> None:
        while self._waiting and self._waiting[0][0] <= now:
            self._due.append(heapq.heappop(self._waiting)[2])

    async def _post(self, count: int) -> None:
        batch, self._due = self._due[:count], self._due[count:]
        refused = await self._client.send(batch)
        self._totals.refused += len(refused)
