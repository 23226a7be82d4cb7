"""The media types of request bodies: which route reads which, and the sentence that says what to send instead of another."""

from __future__ import annotations

from email.message import Message as Header
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from serving.http.browsers import EVENTS_PATH, RECOMMEND_PATH

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines", "text/plain")
"""One event a line; beacons of web pages can only send text/plain."""
ADVICE = {
    RECOMMEND_PATH: "send JSON with Content-Type: application/json",
    EVENTS_PATH: 'send {"events": [...]} with Content-Type: application/json, or one event a line with application/x-ndjson',
}
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})


def read_media_type(content_type: str) -> str:
    """Return the media type of a Content-Type header in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Return whether a media type is JSON, such as application/json or application/activity+json."""
    return media_type == "application/json" or (media_type.startswith("application/") and media_type.endswith("+json"))


def find_problem(path: str, content_type: str | None) -> str | None:
    """Return why a route that reads a body does not read this type, None when it does."""
    if content_type is None:
        return f"the request has no Content-Type: {ADVICE[path]}"
    media_type = read_media_type(content_type)
    if not is_json(media_type) and not (path == EVENTS_PATH and media_type in NDJSON):
        return f"this Content-Type is not read here: {ADVICE[path]}"
    header = Header()
    header["Content-Type"] = content_type
    charset = header.get_param("charset", "utf-8")
    if str(charset).lower() not in _UTF8:
        return "the body must be in UTF-8: leave out the charset of Content-Type"
    return None


class CheckMediaType:
    """Answers 415 to a body that its route does not read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in ADVICE:
            found = dict(scope["headers"]).get(b"content-type")
            problem = find_problem(scope["path"], None if found is None else found.decode("latin-1"))
            if problem is not None:
                await JSONResponse({"error": problem}, 415)(scope, receive, send)
                return
        await self.app(scope, receive, send)
