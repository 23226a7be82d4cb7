"""The app for web pages: the snippet and the schema it serves, who may post, and the snippet in Node and in a real browser.

Node and Chromium are needed where REQUIRE_BROWSER is set (CI); elsewhere their tests are skipped where one is missing.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import jsonschema
import pytest
import uvicorn

from serving.http.browsers import read_snippet
from serving.settings import ServingSettings
from streams.events.schema import encode
from streams.runtime.processes import Child
from tests.serving.http.test_app import KEY
from tests.support.logs import click, impression, query
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import AppUnderTest

SHOP = "https://shop.example"
PAGE = """<!doctype html><script src="{app_url}/v1/queryloop.js"></script><script>
const loop = Queryloop.connect({{ url: "{app_url}", writeKey: "{key}", retryMs: 50, intervalMs: 50 }});
{script}
</script>"""


def needed(program: str) -> str:
    """The program's path; without it the test is skipped, or fails where REQUIRE_BROWSER is set."""
    found = shutil.which(program)
    if found is None:
        if os.environ.get("REQUIRE_BROWSER"):
            pytest.fail(f"REQUIRE_BROWSER is set, but {program} is not installed (Debian: apt-get install {program})")
        pytest.skip(f"{program} is not installed")
    return found


@pytest.fixture
def served(tmp_path: Path) -> AppUnderTest:
    return AppUnderTest(tmp_path, ScriptedEngine(), key=KEY, write_key="public-key", origins=(SHOP,))


def test_snippet_and_schema_are_public_and_cacheable(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path, kind in (("/v1/queryloop.js", "text/javascript"), ("/v1/events/schema.json", "application/schema+json")):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            again = await client.get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        assert (await client.get("/v1/queryloop.js")).content == read_snippet()

    served.run(scenario)


def test_the_schema_accepts_and_refuses_what_the_app_does(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        schema = (await client.get("/v1/events/schema.json")).json()
        validator = jsonschema.Draft202012Validator(schema)
        for line in (query("e1", 1.5), impression("e2", "2026-01-05T10:00:01Z"), click("e3", 2)):
            validator.validate(json.loads(line))
        assert not validator.is_valid({**json.loads(query("e", 1)), "query": "x" * 513})
        assert not validator.is_valid({"type": "click"})

    served.run(scenario)


def test_the_write_key_allows_posting_events_and_nothing_else(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = query("e1", 1_600_000_000.0)
        sent = await client.post("/v1/events?write_key=public-key", content=body, headers={"Content-Type": "text/plain"})
        assert (sent.status_code, sent.json()["accepted"]) == (202, 1)
        for path in ("/v1/events", "/v1/events?write_key=wrong-key", "/v1/events?write_key=public-key&write_key=x"):
            assert (await client.post(path, content=body)).status_code == 401
        assert (await client.get("/v1/releases?write_key=public-key")).status_code == 401
        assert (await client.post("/v1/recommend?write_key=public-key", json={})).status_code == 401

    served.run(scenario)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 202),
        (SHOP, 202),
        ("http://x", 202),
        ("https://evil.example", 403),
        ("null", 403),
        ("https://shop.example.evil", 403),
    ],
)
def test_a_browser_may_post_only_for_known_origins(served: AppUnderTest, origin: str | None, status: int) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        headers = {"Content-Type": "text/plain"} | ({"Origin": origin} if origin else {})
        answer = await client.post("/v1/events?write_key=public-key", content=query("e", 1_600_000_000.0), headers=headers)
        assert answer.status_code == status
        assert len(served.sink.events) == (status == 202)
        assert answer.headers.get("access-control-allow-origin") == (origin if origin == SHOP else None)

    served.run(scenario)


def test_a_preflight_of_a_known_origin_is_answered(served: AppUnderTest) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        asked = {"Origin": SHOP, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        answer = await client.options("/v1/events", headers=asked)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SHOP)

    served.run(scenario)


@pytest.mark.parametrize("origin", ["shop.example", "https://shop.example/", "https://shop.example/a", "*", "HTTPS://X", ""])
def test_what_is_no_origin_is_refused_when_settings_are_read(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        ServingSettings(origins=(origin,))


def test_the_snippet_in_node() -> None:
    script = Path(__file__).with_name("queryloop.test.js")
    done = subprocess.run([needed("node"), "--test", str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_in_chromium_sends_its_events_across_origins(tmp_path: Path) -> None:
    script = """
    loop.query("lisbon");
    const shown = loop.impression("lisbon", ["lisbon weather", "<b>lisbon</b> müsli"]);
    loop.click(shown, 1);
    """
    with page(tmp_path, script) as (served, seen):
        seen(lambda: len(served.sink.events) == 3)
        first, shown, clicked = (json.loads(encode(event)) for event in served.sink.events)
        assert [first["type"], shown["type"], clicked["type"]] == ["query", "impression", "click"]
        assert clicked["impression_id"] == shown["impression_id"]
        assert clicked["item"] == "<b>lisbon</b> müsli"


def test_a_page_in_chromium_tries_again_while_the_app_is_busy(tmp_path: Path) -> None:
    with page(tmp_path, 'loop.query("again");', full=True) as (served, seen):
        refused = {"path": "/v1/events", "status": "503"}
        seen(lambda: served.metrics.registry.get_sample_value("queryloop_requests_total", refused))
        assert not served.sink.events
        served.sink.full = False
        seen(lambda: len(served.sink.events) == 1)


def test_a_page_in_chromium_sends_what_is_left_when_it_is_closed(tmp_path: Path) -> None:
    script = 'loop.options.intervalMs = 1e6; loop.query("last words"); setTimeout(() => location.href = "about:blank", 100);'
    with page(tmp_path, script) as (served, seen):
        seen(lambda: [event.query for event in served.sink.events] == ["last words"])


@contextmanager
def page(tmp_path: Path, script: str, full: bool = False) -> Iterator[tuple[AppUnderTest, Callable[[Callable[[], bool]], None]]]:
    """Open a page of another origin than the app's in headless Chromium; yield the app and a function that waits."""
    browser = needed("chromium")
    with listen() as app_socket, listen() as page_socket:
        app_url, origin = url_of(app_socket), url_of(page_socket)
        served = AppUnderTest(
            tmp_path / "data", ScriptedEngine(), clock=time.time, key=KEY, write_key="public-key", origins=(origin,)
        )
        served.sink.full = full
        html = PAGE.format(app_url=app_url, key="public-key", script=script)
        with serve_app(served, app_socket), serve_text(page_socket, html):
            flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
            flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'profile'}"]
            with Child("chromium", [browser, *flags, origin], tmp_path / "chromium.log") as child:
                yield served, lambda holds: child.wait_until(holds, 60.0, "seen by the app")


def listen() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def url_of(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


@contextmanager
def serve_app(served: AppUnderTest, listening: socket.socket) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(served.app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            thread.join(0.02)
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serve_text(listening: socket.socket, text: str) -> Iterator[None]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(listening.getsockname(), Answer, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
