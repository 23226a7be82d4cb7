"""Content types: which a route reads, and what it says about any other."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import NOW, AppUnderTest

EVENT = json.dumps({"type": "query", "event_id": "e", "ts": NOW, "session_id": "s", "query": "shoes"}).encode()
BODIES = {"/v1/events": b'{"events": [' + EVENT + b"]}", "/v1/recommend": b'{"query": "red shoes", "session_id": "s"}'}


@pytest.mark.parametrize(
    ("path", "kind", "body"),
    [
        *(
            (path, kind, body)
            for path, body in BODIES.items()
            for kind in ("application/json", "Application/JSON; charset=UTF-8")
        ),
        *(("/v1/events", kind, EVENT) for kind in ("application/x-ndjson", "application/jsonl", "text/plain;charset=UTF-8")),
        ("/v1/events", "application/cloudevents+json", BODIES["/v1/events"]),
    ],
)
def test_a_body_is_read_by_its_content_type(tmp_path: Path, path: str, kind: str, body: bytes) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine())

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(path, content=body, headers={"content-type": kind})
        assert answer.status_code in (200, 202), answer.text

    served.run(scenario)
    assert len(served.sink.events) == 1


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (None, "the request has no Content-Type: send "),
        ("", "this Content-Type is not read here: send "),
        ("application/x-www-form-urlencoded", "this Content-Type is not read here: send "),
        ("multipart/form-data; boundary=x", "this Content-Type is not read here: send "),
        ("json", "this Content-Type is not read here: send "),
        ("application/json; charset=utf-16", "the body must be in UTF-8"),
    ],
)
def test_another_content_type_is_a_415_that_says_what_to_send(tmp_path: Path, path: str, kind: str | None, said: str) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine())

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(path, content=BODIES[path], headers={} if kind is None else {"content-type": kind})
        assert answer.status_code == 415
        assert answer.json()["error"].startswith(said)
        assert said.startswith("the body") or "application/json" in answer.json()["error"]

    served.run(scenario)
    assert served.sink.events == []


def test_lists_are_not_asked_for_in_lines(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/recommend", content=BODIES["/v1/recommend"], headers={"content-type": "text/plain"})
        assert answer.status_code == 415

    AppUnderTest(tmp_path, ScriptedEngine()).run(scenario)
