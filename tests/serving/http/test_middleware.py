"""Keys: every route, with each key set or not, and each key sent right, wrong, twice or not at all."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import NOW, AppUnderTest

KEY, WRITE_KEY = "a-long-enough-key", "a-public-write-key"
EVENT = {"type": "query", "event_id": "e", "ts": NOW, "session_id": "s", "query": "shoes"}
OPEN = {"/healthz", "/readyz", "/v1/queryloop.js", "/v1/events/schema.json"}
ROUTES = [*OPEN, "/metrics", "/v1/releases", "/v1/openapi.json", "/v1/recommend", "/v1/events"]
HEADERS: dict[str, list[str]] = {
    "absent": [],
    "right": [f"Bearer {KEY}"],
    "wrong": [f"Bearer {KEY}x"],
    "the write key": [f"Bearer {WRITE_KEY}"],
    "bare": [KEY],
    "empty": [""],
    "twice": [f"Bearer {KEY}", f"Bearer {KEY}"],
}
PARAMETERS = {
    "absent": "",
    "right": f"?write_key={WRITE_KEY}",
    "wrong": f"?write_key={WRITE_KEY}x",
    "the key": f"?write_key={KEY}",
    "empty": "?write_key=",
    "not ASCII": "?write_key=%F2%80%84%B9&other=%C3%A4",
    "twice": f"?write_key={WRITE_KEY}&write_key={WRITE_KEY}",
}


def is_allowed(path: str, settings: dict[str, str], header: str, parameter: str) -> bool:
    """The rule, literally: a set key that is sent must be right; with `key` set one of them must be sent."""
    if path in OPEN:
        return True
    sent_key, sent_write_key = header != "absent", parameter != "absent" and path == "/v1/events"
    if "key" in settings and sent_key and header != "right":
        return False
    if "write_key" in settings and sent_write_key and parameter != "right":
        return False
    return "key" not in settings or sent_key or ("write_key" in settings and sent_write_key)


async def ask(client: httpx.AsyncClient, path: str, header: str, parameter: str) -> httpx.Response:
    headers = [("authorization", value) for value in HEADERS[header]]
    bodies: dict[str, Any] = {"/v1/recommend": {"query": "shoes", "session_id": "s"}, "/v1/events": {"events": [EVENT]}}
    method, json = ("POST", bodies[path]) if path in bodies else ("GET", None)
    return await client.request(method, path + PARAMETERS[parameter], headers=headers, json=json)


@pytest.mark.parametrize("key", [{}, {"key": KEY}], ids=["no key", "key"])
@pytest.mark.parametrize("write_key", [{}, {"write_key": WRITE_KEY}], ids=["no write key", "write key"])
def test_each_key_opens_its_routes_and_a_wrong_one_opens_none(
    tmp_path: Path, key: dict[str, str], write_key: dict[str, str]
) -> None:
    settings = {**key, **write_key}

    async def scenario(client: httpx.AsyncClient) -> None:
        for path, header, parameter in itertools.product(ROUTES, HEADERS, PARAMETERS):
            answer = await ask(client, path, header, parameter)
            allowed = is_allowed(path, settings, header, parameter)
            assert (answer.status_code == 401) != allowed, (path, header, parameter, answer.text)
            assert allowed or answer.headers["www-authenticate"] == "Bearer"
            assert not any(secret in answer.text for secret in (KEY, WRITE_KEY))

    AppUnderTest(tmp_path, ScriptedEngine(), **settings).run(scenario)


def test_a_stopping_app_is_not_ready_answers_and_closes_connections(tmp_path: Path) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine())

    async def scenario(client: httpx.AsyncClient) -> None:
        assert "connection" not in (await client.get("/readyz")).headers
        served.stopping.set()
        ready = await client.get("/readyz")
        said = ready.json()
        assert (ready.status_code, said["ready"], said["release"], said["error"]) == (503, False, "r0000", "stopping")
        answer = await client.post("/v1/recommend", json={"query": "shoes", "session_id": "s"})
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert (await client.get("/healthz")).status_code == 200

    served.run(scenario)
