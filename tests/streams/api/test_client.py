"""The client of a worker's HTTP: the body or a JSON object, and typed errors that name the address, the cause and what to do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import SecretStr

from streams.api.client import HttpError, get, get_json
from streams.runtime.processes import free_port

KEY = SecretStr("letmein")
ANSWERS = {
    "/status": (200, b'{"worker": "one"}'),
    "/text": (200, b"ok"),
    "/list": (200, b"[1]"),
    "/no": (400, b'{"error": "query: Field required"}'),
    "/odd": (500, b"\x1b[2J oh"),
    "/nothing": (204, b""),
    "/cut": (200, b"half"),
}


class Worker(BaseHTTPRequestHandler):
    """Answers from ANSWERS to requests with the key; /moved is at /status, and /cut ends before its end."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        status, body = ANSWERS.get(path, (404, b""))
        if self.headers["Authorization"] != "Bearer letmein":
            status, body = 401, b'{"error": "set the header"}'
        if path == "/moved":
            status = 307
        self.send_response(status)
        self.send_header("Location", "/status?local=true")
        self.send_header("Content-Length", "99" if path == "/cut" else str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Worker) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_answer_is_its_body_or_its_json_object(url: str) -> None:
    assert get(f"{url}/text", KEY) == b"ok"
    assert get_json(f"{url}/status", KEY, {"query": "a b&c"}) == {"worker": "one"}


def test_a_redirect_is_followed_with_the_key(url: str) -> None:
    assert get_json(f"{url}/moved", KEY) == {"worker": "one"}


def test_no_proxy_is_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert get(f"{url}/text", KEY) == b"ok"


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/no", 400, "query: Field required"),
        ("/odd", 500, "\\x1b[2J oh"),
        ("/absent", 404, ""),
        ("/nothing", 204, ""),
        ("/text", 200, "the answer is no JSON object: another server listens there"),
        ("/list", 200, "the answer is no JSON object: another server listens there"),
    ],
)
def test_a_refusal_has_the_address_the_status_and_the_reason(url: str, path: str, status: int, reason: str) -> None:
    with pytest.raises(HttpError) as error:
        get_json(url + path, KEY)
    assert (error.value.status, error.value.reason) == (status, reason)
    assert str(error.value) == f"{url}{path}: HTTP {status}: {reason}"


def test_a_missing_key_names_the_setting(url: str) -> None:
    with pytest.raises(HttpError, match=r"HTTP 401: set the header; set QUERYLOOP_WORKER_KEY to its worker\.key"):
        get(f"{url}/status", None)


def test_a_server_that_does_not_answer_is_named_with_what_to_do(url: str) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/status"
    with pytest.raises(
        HttpError, match=rf"^{nobody}: no answer: nothing listens there; start the worker, or set worker\.host"
    ) as error:
        get(nobody, KEY, timeout_s=5.0)
    assert error.value.status is None
    with pytest.raises(HttpError, match="no answer: IncompleteRead"):
        get(f"{url}/cut", KEY)
