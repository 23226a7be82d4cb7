"""Peers: a worker that does not answer gives no part, and is logged."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from streams.api.peers import Peers
from streams.runtime.processes import free_port
from streams.store.shard_registry import ShardHolder, ShardRegistry


def test_a_stale_entry_gives_no_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ShardRegistry(tmp_path, ShardHolder("gone", f"http://127.0.0.1:{free_port()}", 1)).add(0)

    async def scenario() -> None:
        peers = Peers(ShardRegistry(tmp_path, ShardHolder("one", "http://127.0.0.1:1", 11)), None)
        assert await peers.ask("/v1/lag", {}, [0, 1]) == {}
        await peers.close()

    asyncio.run(scenario())
    assert "event=peer_silent worker=gone" in caplog.text
