"""What every request passes before it reaches a route: metrics, the key, and the limit on its body."""

from __future__ import annotations

import asyncio
import hmac
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

from serving.http import browsers
from serving.metrics import ServingMetrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN_PATHS = frozenset({"/healthz", "/readyz"}) | browsers.OPEN_PATHS
"""Paths that need no key: health checks, the snippet and the schema."""
DISCARDED = 64
"""How many times the limit is read and discarded before a connection is closed: most clients read the answer only after they have
sent everything, and see a broken connection instead of the 413 when it is closed before."""


class CountRequests:
    """Counts answers by path and status, and their time. Unknown paths are counted as one."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics, paths: frozenset[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        began, status = perf_counter(), "500"

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            self.metrics.requests.labels(path, status).inc()
            self.metrics.request_seconds.labels(path).observe(perf_counter() - began)


class BearerKey:
    """Answers 401 without the key; with no key set, everything passes (the server then listens on loopback only).

    `write_key` in the query string allows only POST /v1/events, since everybody can read it in a web page.
    """

    def __init__(self, app: ASGIApp, key: str | None, write_key: str | None = None) -> None:
        self.app = app
        self.wanted = None if key is None else f"Bearer {key}".encode()
        self.write_key = None if write_key is None else write_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.wanted is None or scope["path"] in OPEN_PATHS or self._is_allowed(scope):
            await self.app(scope, receive, send)
            return
        refusal = JSONResponse({"error": "send the key as Authorization: Bearer KEY"}, 401, {"WWW-Authenticate": "Bearer"})
        await refusal(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._may_write(scope):
            return True
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and self.wanted is not None and hmac.compare_digest(given[0], self.wanted)

    def _may_write(self, scope: Scope) -> bool:
        if self.write_key is None or scope["path"] != browsers.EVENTS_PATH or scope["method"] != "POST":
            return False
        given = parse_qs(scope["query_string"]).get(b"write_key", [])
        return len(given) == 1 and hmac.compare_digest(given[0], self.write_key)


class LimitBody:
    """Reads a body up to the limit, with or without a Content-Length, and answers 413 beyond it, 408 when it is too slow."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._read(scope, receive)
        except TimeoutError:
            await _refuse(408, f"the body did not arrive within {self.timeout_s:g} s")(scope, receive, send)
            return
        if body is None:
            await _refuse(413, f"the body is larger than {self.max_bytes} bytes")(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body, as far as the client sent it; None when it is too large."""
        announced = [value for name, value in scope["headers"] if name == b"content-length"]
        discard_up_to = self.max_bytes * DISCARDED
        if announced and announced[0].isdigit() and int(announced[0]) > discard_up_to:
            return None
        body, size = bytearray(), 0
        while size <= discard_up_to:
            message = await receive()
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= self.max_bytes:
                body += chunk
            if not message.get("more_body", False):
                break
        return bytes(body) if size <= self.max_bytes else None


def _refuse(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status, {"Connection": "close"})


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return dict(await receive())
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
