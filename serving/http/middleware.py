"""What every request passes before it reaches a route: metrics, the key, and the limit on its body."""

from __future__ import annotations

import asyncio
import hmac
import threading
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
OTHER = "other"
"""The path under which requests to unknown paths are counted."""
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
        path = scope["path"] if scope["path"] in self.paths else OTHER
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


class CloseConnections:
    """Closes each connection after its answer once the process is stopping, so that clients make their next call elsewhere."""

    def __init__(self, app: ASGIApp, stopping: threading.Event) -> None:
        self.app = app
        self.stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def close(message: Message) -> None:
            if message["type"] == "http.response.start" and self.stopping.is_set():
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self.app(scope, receive, close)


class CheckKeys:
    """Answers 401 to a request without its key, and to one with a wrong key.

    `key`, sent as `Authorization: Bearer KEY`, opens every route. `write_key`, sent in the query string, opens POST /v1/events
    and nothing else, since everybody can read it in a web page. Each is checked by itself: a wrong one is refused even where the
    other is right. Where a key is not set there is nothing to compare with, so one that is sent is ignored; without `key` every
    route is open (the server then listens on loopback only).
    """

    def __init__(self, app: ASGIApp, key: str | None, write_key: str | None = None) -> None:
        self.app = app
        self.wanted = None if key is None else f"Bearer {key}".encode()
        self.write_key = None if write_key is None else write_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._find_problem(scope) if scope["type"] == "http" and scope["path"] not in OPEN_PATHS else None
        if problem is None:
            await self.app(scope, receive, send)
            return
        await JSONResponse({"error": problem}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _find_problem(self, scope: Scope) -> str | None:
        key = _compare(self.wanted, [value for name, value in scope["headers"] if name == b"authorization"])
        write_key = _compare(self.write_key, _find_write_keys(scope))
        if key is False:
            return "the key in Authorization is wrong: send serving.key as Authorization: Bearer KEY"
        if write_key is False:
            return "the write_key in the address is wrong: send the public key that is serving.write_key"
        return None if self.wanted is None or key or write_key else "send the key as Authorization: Bearer KEY"


def _compare(wanted: bytes | None, given: list[bytes]) -> bool | None:
    """Return whether the key that was given is right, in constant time; None when none was given or none is set."""
    if wanted is None or not given:
        return None
    return len(given) == 1 and hmac.compare_digest(given[0], wanted)


def _find_write_keys(scope: Scope) -> list[bytes]:
    if scope["path"] != browsers.EVENTS_PATH or scope["method"] != "POST":
        return []
    # As text: of bytes the library decodes only ASCII, and raises for other characters that are percent-encoded.
    fields = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="surrogateescape")
    return [value.encode("utf-8", "surrogateescape") for value in fields.get("write_key", [])]


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
        await self.app(scope, replay_body(body, receive), send)

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


def replay_body(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body in one message, then what the connection says."""
    sent = False

    async def replay() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return dict(await receive())
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
