"""For web pages: the JavaScript snippet, the events' JSON Schema, and the check of origins that may post.

A page cannot keep a secret, and a beacon has no Authorization header. So a page sends the public `serving.write_key`, which
allows POST /v1/events and nothing else, and browsers may call only for pages of the app's own origin and of `serving.origins`.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request  # FastAPI reads the annotation while it runs
from starlette.responses import JSONResponse, Response

from streams.events.schema import EventSettings, json_schema

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

SNIPPET_PATH = "/v1/queryloop.js"
SCHEMA_PATH = "/v1/events/schema.json"
EVENTS_PATH = "/v1/events"
RECOMMEND_PATH = "/v1/recommend"
OPEN_PATHS = frozenset({SNIPPET_PATH, SCHEMA_PATH})
"""Public paths that need no key."""
_FRESH = "public, max-age=3600"


@cache
def read_snippet() -> bytes:
    """Return the snippet's text."""
    return files("serving.http").joinpath("browser/queryloop.js").read_bytes()


def answer_snippet(request: Request) -> Response:
    """Answer the snippet, cacheable for an hour and by its ETag."""
    return _cacheable(request, read_snippet(), "text/javascript; charset=utf-8")


def answer_schema(request: Request, limits: EventSettings) -> Response:
    """Answer the JSON Schema of one event, with the limits of these settings."""
    return _cacheable(request, msgspec.json.encode(json_schema(limits)), "application/schema+json")


def _cacheable(request: Request, body: bytes, kind: str) -> Response:
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {"ETag": etag, "Cache-Control": _FRESH, "X-Content-Type-Options": "nosniff"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=kind, headers=headers)


class KnownOrigins:
    """Answers 403 to requests of a browser for a page of an unknown origin; programs send no Origin and pass.

    Without it any page that somebody on this machine opens could post events to an app on loopback.
    """

    def __init__(self, app: ASGIApp, origins: frozenset[str]) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS and not self._is_allowed(scope):
            text = "pages of this origin may not call: add it to serving.origins"
            await JSONResponse({"error": text}, 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        origin: str | None = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        own = f"{scope['scheme']}://{headers.get(b'host', b'').decode('latin-1')}"
        return origin is None or origin == own or origin in self.origins
