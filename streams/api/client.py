"""The synchronous HTTP client of a worker, for commands, tests and benchmarks; workers ask each other by `streams.api.peers`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import msgspec
from pydantic import SecretStr

from streams.events.schema import printable

MAX_ERROR_BYTES = 4096
ADVICE: dict[int | None, str] = {
    None: "; start the worker, or set worker.host and worker.port to where it listens",
    HTTPStatus.UNAUTHORIZED: "; set QUERYLOOP_WORKER_KEY to its worker.key",
}
OPENER = build_opener(ProxyHandler({}))
"""Without a proxy: a worker is on this machine or in its network. It follows the 307 to another worker with the same key."""


class HttpError(RuntimeError):
    """A server gave no usable answer; the text names its address, the cause and what to do.

    `reason` is the cause alone, `status` that of HTTP, None when the server did not answer; `answer` is its JSON object, if any.
    """

    def __init__(self, url: str, reason: str, status: int | None = None, answer: dict[str, Any] | None = None) -> None:
        outcome = "no answer" if status is None else f"HTTP {status}"
        super().__init__(f"{url}: {outcome}: {reason}{ADVICE.get(status, '')}")
        self.reason = reason
        self.status = status
        self.answer = answer or {}


def get(url: str, key: SecretStr | None, parameters: Mapping[str, Any] | None = None, timeout_s: float = 30.0) -> bytes:
    """Return the body that a server answers to GET. Raises HttpError."""
    asked = with_query(url, parameters or {})
    try:
        status, body = _open(Request(asked, headers=key_header(key)), timeout_s)
    except (OSError, HTTPException) as error:
        raise HttpError(asked, str(getattr(error, "reason", error)) or repr(error)) from error
    if status != HTTPStatus.OK:
        raise HttpError(asked, read_error(body), status, read_object(body))
    return body


def _open(request: Request, timeout_s: float) -> tuple[int, bytes]:
    try:
        with OPENER.open(request, timeout=timeout_s) as answer:
            return answer.status, answer.read()
    except HTTPError as error:
        with error:
            return error.code, error.read(MAX_ERROR_BYTES)


def get_json(
    url: str, key: SecretStr | None, parameters: Mapping[str, Any] | None = None, timeout_s: float = 30.0
) -> dict[str, Any]:
    """Return the JSON object that a server answers to GET. Raises HttpError."""
    answer = read_object(get(url, key, parameters, timeout_s))
    if answer is None:
        raise HttpError(url, "the answer is no JSON object: another server listens there", HTTPStatus.OK)
    return answer


def with_query(url: str, parameters: Mapping[str, Any]) -> str:
    """Return a URL with these query parameters."""
    return f"{url}?{urlencode(parameters)}" if parameters else url


def key_header(key: SecretStr | None) -> dict[str, str]:
    """Return the header that carries a key, none without one."""
    return {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}


def read_object(body: bytes) -> dict[str, Any] | None:
    """Return an answer's JSON object, None if it is something else."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_error(body: bytes) -> str:
    """Return the `error` of an answer's JSON object, else its text as printable ASCII."""
    answer = read_object(body) or {}
    return str(answer.get("error") or printable(body.decode("utf-8", "replace")))
