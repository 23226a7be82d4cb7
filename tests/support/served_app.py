"""The HTTP app in process: a sink in place of the emitter, a scripted engine, and a data folder with two releases."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from serving.http.app import create_app
from serving.metrics import ServingMetrics
from serving.releases import registry
from serving.releases.fallback_index import FallbackIndex, load_fallback
from serving.releases.registry import Release
from serving.releases.slot import Bundle, Slot
from serving.settings import ServingRoot, ServingSettings
from streams.emitter.emitter import Counters, QueueFull
from streams.events.schema import Event
from streams.runtime import artifacts
from streams.runtime.settings import DataSettings
from tests.support.scripted_engine import ScriptedEngine

NOW = 1_700_000_000.0


class Sink:
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.full = False
        self.stored = True

    def emit(self, event: Event) -> None:
        if self.full:
            raise QueueFull("no room")
        self.events.append(event)

    def store(self, timeout: float) -> bool:
        return self.stored

    def counters(self) -> Counters:
        return Counters(emitted=len(self.events))


class AppUnderTest:
    """An app over a data folder with two releases, the first one live unless `empty`."""

    def __init__(
        self, data: Path, engine: ScriptedEngine, *, empty: bool = False, clock: Callable[[], float] = lambda: NOW, **serving: Any
    ) -> None:
        policy = artifacts.publish(data / "artifacts", "policy", lambda folder: put(folder / "weights", b"w"), {})
        for _ in range(2):
            registry.publish(data, policy=policy.path)
        if not empty:
            registry.promote(data, "r0000")
        self.data = data
        self.engine = engine
        self.sink = Sink()
        self.metrics = ServingMetrics()
        self.load_error: Exception | None = None
        self.slot = Slot(data, self.load, self.metrics, poll_s=60, fallback=FallbackIndex(data, load_fallback))
        self.slot.check()
        root = ServingRoot(data=DataSettings(dir=data), serving=ServingSettings(**serving))
        self.stopping = threading.Event()
        self.app = create_app(root, self.slot, self.sink, self.metrics, clock=clock, stopping=self.stopping)

    def load(self, release: Release) -> Bundle:
        if self.load_error:
            raise self.load_error
        return Bundle(release, self.engine)

    def run(self, scenario: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]], **headers: str) -> None:
        async def run() -> None:
            async with client_of(self.app, headers) as client:
                await asyncio.wait_for(scenario(client), 30)

        asyncio.run(run())


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


@asynccontextmanager
async def client_of(app: FastAPI, headers: dict[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client,
    ):
        yield client
