"""SIGTERM under load: a real process says that it is not ready, serves on, closes its port, and answers what is in flight."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from serving.http.server import DrainingServer
from serving.releases import registry
from streams.brokers.broker import Broker
from streams.brokers.topics import KafkaSettings, create_topics
from tests.serving.test_main import publish, served, wait_for

CALL = {"query": "red shoes", "session_id": "s"}
DRAIN_S = 2.0


def make_server(drain_s: float) -> tuple[DrainingServer, threading.Event]:
    stopping = threading.Event()
    return DrainingServer(uvicorn.Config(FastAPI()), stopping, drain_s), stopping


@pytest.mark.parametrize(
    ("drain_s", "signals", "closes"),
    [
        (60.0, [signal.SIGTERM], False),
        (60.0, [signal.SIGINT], True),
        (60.0, [signal.SIGTERM, signal.SIGTERM], True),
        (60.0, [signal.SIGTERM, signal.SIGINT], True),
        (0.0, [signal.SIGTERM], True),
    ],
)
def test_every_signal_ends_readiness_and_only_the_first_sigterm_waits(
    drain_s: float, signals: list[signal.Signals], closes: bool
) -> None:
    server, stopping = make_server(drain_s)
    for number in signals:
        server.handle_exit(number, None)
    assert stopping.is_set()
    assert server.should_exit is closes


@dataclass
class Seen:
    """What clients saw: when readiness ended, when the first connection failed, and how the answers were."""

    not_ready_at: float | None = None
    refused_at: float | None = None
    statuses: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


async def call_until_refused(url: str, seen: Seen) -> None:
    """Call, each time over a new connection as well as over a kept one, until the port is closed."""
    async with httpx.AsyncClient(base_url=url, timeout=40) as kept:
        while seen.refused_at is None:
            for client in (kept, httpx.AsyncClient(base_url=url, timeout=40)):
                try:
                    seen.statuses.append((await client.post("/v1/recommend", json=CALL)).status_code)
                except httpx.ConnectError:
                    seen.refused_at = seen.refused_at or time.monotonic()
                except httpx.HTTPError as error:
                    seen.broken.append(repr(error))
                if client is not kept:
                    await client.aclose()


async def watch_readiness(url: str, seen: Seen) -> None:
    """Ask /readyz over a new connection each time, as load balancers do."""
    while seen.refused_at is None:
        try:
            async with httpx.AsyncClient(base_url=url, timeout=40) as client:
                answer = await client.get("/readyz")
        except httpx.HTTPError:
            return
        if answer.status_code == 503 and seen.not_ready_at is None:
            assert answer.json()["error"] == "stopping"
            seen.not_ready_at = time.monotonic()
        await asyncio.sleep(0.05)


def test_sigterm_under_load_breaks_no_call(tmp_path: Path, embedded_broker: Broker) -> None:
    create_topics(embedded_broker.bootstrap, KafkaSettings())
    registry.promote(tmp_path, publish(tmp_path, 0))
    seen = Seen()

    async def load(url: str, stop: object) -> None:
        clients = [asyncio.create_task(call_until_refused(url, seen)) for _ in range(4)]
        watch = asyncio.create_task(watch_readiness(url, seen))
        await asyncio.sleep(0.5)
        assert callable(stop)
        stop()
        await asyncio.wait_for(asyncio.gather(watch, *clients), 90)

    log = tmp_path / "serving.log"
    with served(tmp_path, embedded_broker.bootstrap, log, QUERYLOOP_SERVING_DRAIN_S=str(DRAIN_S)) as (url, process):
        with httpx.Client(base_url=url, timeout=40) as client:
            wait_for(lambda: client.get("/readyz").json()["ready"], process)
        asyncio.run(load(url, lambda: process.send_signal(signal.SIGTERM)))
        assert process.wait(60) == 0
    assert seen.broken == []
    assert set(seen.statuses) == {200}
    assert seen.not_ready_at is not None and seen.refused_at is not None
    assert seen.refused_at - seen.not_ready_at > DRAIN_S / 2, "the port stayed open for balancers to notice"
    assert f"event=stopping drain_s={DRAIN_S:g}" in log.read_text()
