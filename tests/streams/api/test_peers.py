"""Peers: a worker that does not answer gives no part, and is logged."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from streams.api.peers import Peers
from streams.runtime.data_folder import open_data_folder
from streams.runtime.processes import free_port
from streams.store.shard_registry import ShardHolder, ShardRegistry


def test_a_port_that_is_another_stacks_now_gives_no_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both workers have the default name, so only the data folder tells them apart."""
    caplog.set_level(logging.WARNING)
    theirs = open_data_folder(tmp_path / "theirs")
    open_data_folder(tmp_path / "mine")

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"worker": "worker-0", "parts": {"0": {}}}, headers=theirs.headers(with_path=True))

    async def scenario() -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/lag", answer)])
        async with TestServer(app) as server:
            ShardRegistry(tmp_path / "mine", ShardHolder("worker-0", str(server.make_url("")), 1)).add(0)
            peers = Peers(ShardRegistry(tmp_path / "mine", ShardHolder("one", "http://127.0.0.1:1", 11)), None)
            assert await peers.ask("/v1/lag", {}, [0]) == {}
            await peers.close()

    asyncio.run(scenario())
    assert "event=peer_stale worker=worker-0" in caplog.text


def test_a_stale_entry_gives_no_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ShardRegistry(tmp_path, ShardHolder("gone", f"http://127.0.0.1:{free_port()}", 1)).add(0)

    async def scenario() -> None:
        peers = Peers(ShardRegistry(tmp_path, ShardHolder("one", "http://127.0.0.1:1", 11)), None)
        assert await peers.ask("/v1/lag", {}, [0, 1]) == {}
        await peers.close()

    asyncio.run(scenario())
    assert "event=peer_silent worker=gone" in caplog.text
