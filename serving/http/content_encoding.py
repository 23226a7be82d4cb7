"""Bodies that are sent compressed (Content-Encoding): decoded up to the limit on a body, before a route reads them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from serving.http.middleware import replay_body

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""The content encodings that are read, and zlib's `wbits` for each."""
MAX_MEMBERS = 64
"""Streams of gzip in one body, at most: each copies what is left of the body, so that many empty ones would take seconds."""


class EncodingError(ValueError):
    """A compressed body that cannot be read. `status` is the HTTP status to answer."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a body without its encoding, a key of WBITS; never more than `max_bytes` + 1 are decoded. Raises EncodingError."""
    inflated, rest = b"", body
    for _ in range(MAX_MEMBERS):
        stream = zlib.decompressobj(WBITS[encoding])
        try:
            inflated += stream.decompress(rest, max_bytes + 1 - len(inflated))
        except zlib.error as error:
            raise EncodingError(400, f"the body is not in {encoding}, as Content-Encoding says: {error}") from error
        if len(inflated) > max_bytes:
            raise EncodingError(413, f"the body is larger than {max_bytes} bytes when it is decoded from {encoding}")
        if not stream.eof:
            raise EncodingError(400, f"the body ends before its {encoding} encoding does")
        rest = stream.unused_data
        if not rest:
            return inflated
    raise EncodingError(400, f"the body has more than {MAX_MEMBERS} streams of {encoding}")


class InflateBody:
    """Decodes the body of a request with a Content-Encoding; answers 415 to an unknown one, 413 and 400 as `inflate` says.

    Stands behind `LimitBody`, which hands on the body in one message."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = _find_encoding(scope) if scope["type"] == "http" and scope["method"] == "POST" else "identity"
        if encoding in ("", "identity"):
            await self.app(scope, receive, send)
            return
        if encoding not in WBITS:
            refusal = {"error": "this Content-Encoding is not read: send gzip, deflate or none"}
            await JSONResponse(refusal, 415, {"Accept-Encoding": "gzip, deflate"})(scope, receive, send)
            return
        try:
            body = inflate((await receive()).get("body", b""), encoding, self.max_bytes)
        except EncodingError as error:
            await JSONResponse({"error": str(error)}, error.status)(scope, receive, send)
            return
        await self.app(_without_encoding(scope, len(body)), replay_body(body, receive), send)


def _find_encoding(scope: Scope) -> str:
    found = [value for name, value in scope["headers"] if name == b"content-encoding"]
    return b",".join(found).decode("latin-1").strip().lower()


def _without_encoding(scope: Scope, size: int) -> Scope:
    kept = [header for header in scope["headers"] if header[0] not in (b"content-encoding", b"content-length")]
    return {**scope, "headers": [*kept, (b"content-length", str(size).encode())]}
