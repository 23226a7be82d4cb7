"""The two HTTP calls of a product: POST /v1/recommend for a list, POST /v1/events for what its users did."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import aiohttp

from queryloop.product.totals import ProductTotals


class CallError(Exception):
    """A call that was not answered as documented; the text names the call and the answer."""


class ServingClient:
    """An HTTP client of one serving process; it adds every call to the totals."""

    def __init__(self, url: str, totals: ProductTotals, *, key: str | None = None, timeout_s: float = 30.0) -> None:
        self._url = url.rstrip("/")
        self._totals = totals
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ServingClient:
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=self._timeout)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()

    async def recommend(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answered list; None when the call failed, which the totals then count."""
        started = time.perf_counter()
        try:
            answer = await self._post("/v1/recommend", json.dumps(request).encode(), "application/json", 200)
        except CallError as error:
            self._totals.fail(str(error))
            return None
        self._totals.latencies_ms.append(1000.0 * (time.perf_counter() - started))
        return answer

    async def send(self, events: Sequence[dict[str, Any]]) -> list[int]:
        """Post events; return the indices of those that serving refused, all of them when the call failed."""
        try:
            answer = await self._post_events(json.dumps({"events": events}).encode(), "application/json")
        except CallError as error:
            self._totals.fail(str(error))
            return list(range(len(events)))
        return [int(one["index"]) for one in answer["rejected"]]

    async def send_lines(self, lines: bytes) -> int:
        """Post NDJSON as it is; return how many lines serving refused."""
        try:
            answer = await self._post_events(lines, "application/x-ndjson")
        except CallError as error:
            self._totals.fail(str(error))
            return 0
        return len(answer["rejected"])

    async def _post_events(self, body: bytes, kind: str) -> dict[str, Any]:
        """Return the answer to a batch, also to one whose every event was refused."""
        answer = await self._post("/v1/events", body, kind, 202, 422)
        if "rejected" not in answer:
            raise CallError(f"POST /v1/events: 422 {str(answer)[:200]}")
        return answer

    async def _post(self, path: str, body: bytes, kind: str, *expected: int) -> dict[str, Any]:
        if self._session is None:
            raise CallError("the client is used outside its `async with` block")
        try:
            async with self._session.post(self._url + path, data=body, headers={"Content-Type": kind}) as response:
                if response.status not in expected:
                    raise CallError(f"POST {path}: {response.status} {(await response.text())[:200]}")
                answer: dict[str, Any] = await response.json()
                return answer
        except TimeoutError as error:
            raise CallError(f"POST {path}: no answer in time") from error
        except (aiohttp.ClientError, ValueError) as error:
            raise CallError(f"POST {path}: {type(error).__name__} {error}") from error
