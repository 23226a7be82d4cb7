"""The synchronous HTTP client of a worker, for commands, tests and benchmarks; workers ask each other by `streams.api.peers`."""

from __future__ import annotations

from collections.abc import Mapping
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import msgspec
from pydantic import SecretStr

from streams.events.schema import printable
from streams.runtime.data_folder import DataFolder

MAX_ERROR_BYTES = 4096
ADVICE: dict[int | None, str] = {
    None: "; start the worker, or set worker.host and worker.port to where it listens",
    HTTPStatus.UNAUTHORIZED: "; set QUERYLOOP_WORKER_KEY to its worker.key",
}
NOBODY_LISTENS = "nothing listens there"
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


class WrongFolder(HttpError):
    """A process of ours answered that works on another data folder than the one expected."""


def get(
    url: str,
    key: SecretStr | None,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float = 30.0,
    folder: DataFolder | None = None,
) -> bytes:
    """Return the body that a server answers to GET. Raises HttpError, WrongFolder if it says that it is not on `folder`."""
    return _ask(Request(with_query(url, parameters or {}), headers=key_header(key)), timeout_s, folder)


def post(url: str, key: SecretStr | None, timeout_s: float = 30.0, folder: DataFolder | None = None, body: bytes = b"") -> bytes:
    """Return the body that a server answers to POST of this body. Raises HttpError, WrongFolder as `get` does."""
    return _ask(Request(url, body, headers=key_header(key), method="POST"), timeout_s, folder)


def _ask(request: Request, timeout_s: float, folder: DataFolder | None) -> bytes:
    try:
        status, body, headers = _open(request, timeout_s)
    except (OSError, HTTPException) as error:
        cause = getattr(error, "reason", error)
        reason = NOBODY_LISTENS if isinstance(cause, ConnectionRefusedError) else str(cause) or repr(error)
        raise HttpError(request.full_url, reason) from error
    if folder is not None and (stranger := folder.find_stranger(headers)) is not None:
        raise WrongFolder(request.full_url, stranger, status)
    if status != HTTPStatus.OK:
        raise HttpError(request.full_url, read_error(body), status, read_object(body))
    return body


def _open(request: Request, timeout_s: float) -> tuple[int, bytes, Mapping[str, str]]:
    try:
        with OPENER.open(request, timeout=timeout_s) as answer:
            return answer.status, answer.read(), _read_headers(answer.headers)
    except HTTPError as error:
        with error:
            return error.code, error.read(MAX_ERROR_BYTES), _read_headers(error.headers)


def _read_headers(headers: Message[str, str]) -> dict[str, str]:
    """Return headers by their names in title case, in which servers differ."""
    return {name.title(): value for name, value in headers.items()}


def get_json(
    url: str,
    key: SecretStr | None,
    parameters: Mapping[str, Any] | None = None,
    timeout_s: float = 30.0,
    folder: DataFolder | None = None,
) -> dict[str, Any]:
    """Return the JSON object that a server answers to GET. Raises HttpError, WrongFolder as `get`."""
    answer = read_object(get(url, key, parameters, timeout_s, folder))
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
