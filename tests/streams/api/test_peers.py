"""Peers: a worker that does not answer gives no part, and is logged."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from streams.api.peers import PARTITIONS_HEADER, Peers
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


@pytest.mark.parametrize("stranger", ["another data folder", "no worker"])
def test_an_export_takes_no_part_of_a_stranger(stranger: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    theirs = open_data_folder(tmp_path / "theirs")
    open_data_folder(tmp_path / "mine")
    headers = {PARTITIONS_HEADER: "0", **theirs.headers(with_path=True)} if stranger == "another data folder" else {}

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=b"their counts", headers=headers)

    async def scenario() -> None:
        app = web.Application()
        app.add_routes([web.get("/v1/windows.arrow", answer)])
        async with TestServer(app) as server:
            ShardRegistry(tmp_path / "mine", ShardHolder("worker-0", str(server.make_url("")), 1)).add(0)
            peers = Peers(ShardRegistry(tmp_path / "mine", ShardHolder("one", "http://127.0.0.1:1", 11)), None)
            assert await peers.download("/v1/windows.arrow", {}, [0], tmp_path) == {}
            await peers.close()

    asyncio.run(scenario())
    assert re.search(r"event=peer_(stale|refused) worker=worker-0", caplog.text)
