"""The OpenAPI document says what the server answers: schemathesis calls a real one in every way it can think of, and compares."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.__main__ import bind, configure
from serving.http.server import DrainingServer
from serving.settings import ServingSettings
from tests.support.scripted_engine import ScriptedEngine
from tests.support.served_app import AppUnderTest

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = "15"
KEY, WRITE_KEY = "a-long-enough-key", "a-public-write-key"


@contextmanager
def running(app: AppUnderTest) -> Iterator[str]:
    """The app over TCP; its URL."""
    settings = ServingSettings(port=0)
    listener = bind(settings)
    server = DrainingServer(configure(app.app, settings), threading.Event(), 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    port = listener.getsockname()[1]
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    "keys",
    [pytest.param({}, id="open", marks=pytest.mark.full), pytest.param({"key": KEY, "write_key": WRITE_KEY}, id="keys")],
)
def test_schemathesis_finds_nothing(tmp_path: Path, keys: dict[str, str]) -> None:
    with running(AppUnderTest(tmp_path, ScriptedEngine(), **keys)) as url:
        headers = ["--header", f"Authorization: Bearer {KEY}"] if "key" in keys else []
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "schemathesis.toml"), "run"]
        command += [f"{url}/v1/openapi.json", "--max-examples", EXAMPLES, "--seed", "1", "--no-color", *headers]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False)
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]


def test_the_document_names_keys_tasks_and_every_media_type(tmp_path: Path) -> None:
    served = AppUnderTest(tmp_path, ScriptedEngine(), key=KEY, write_key=WRITE_KEY)

    async def scenario(client: httpx.AsyncClient) -> None:
        document: dict[str, Any] = (await client.get("/v1/openapi.json", headers={"authorization": f"Bearer {KEY}"})).json()
        events = document["paths"]["/v1/events"]["post"]
        assert events["security"] == [{"key": []}, {"write_key": []}]
        assert document["paths"]["/v1/recommend"]["post"]["security"] == [{"key": []}]
        assert "security" not in document["paths"]["/healthz"]["get"]
        assert {"application/json", "application/x-ndjson", "text/plain"} <= set(events["requestBody"]["content"])
        assert set(events["responses"]) == {str(status) for status in (202, 400, 401, 403, 408, 413, 415, 422, 500, 503)}
        assert document["components"]["schemas"]["RecommendCall"]["properties"]["task"]["enum"] == ["hint", "refine", "suggest"]

    served.run(scenario)
