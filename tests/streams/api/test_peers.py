"""Places of shards: written when taken, removed when given up, and worth nothing when stale."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from streams.api.peers import Peers
from streams.runtime.processes import free_port
from streams.store.shard_registry import Place, Places, find_url

ONE, TWO = Place("one", "http://127.0.0.1:1", 11), Place("two", "http://127.0.0.1:2", 22)


def test_a_place_is_written_read_and_removed_by_its_own_worker_alone(tmp_path: Path) -> None:
    one, two = Places(tmp_path, ONE), Places(tmp_path, TWO)
    assert one.read(3) is None
    one.write(3)
    assert two.read(3) == ONE
    assert two.others([2, 3]) == {ONE: [3]}
    assert one.others([3]) == {}
    two.write(3)
    one.remove(3)
    assert one.read(3) == TWO
    two.remove(3)
    assert one.read(3) is None


@pytest.mark.parametrize("text", ["", "{", '{"worker": 3}', "[]", '"x"'])
def test_a_damaged_file_is_no_place(tmp_path: Path, text: str) -> None:
    places = Places(tmp_path, ONE)
    places.write(0)
    (tmp_path / "run" / "shards" / "0.json").write_text(text)
    assert places.read(0) is None


def test_a_stale_place_gives_no_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    Places(tmp_path, Place("gone", f"http://127.0.0.1:{free_port()}", 1)).write(0)

    async def story() -> None:
        peers = Peers(Places(tmp_path, ONE), None)
        assert await peers.ask("/v1/lag", {}, [0, 1]) == {}
        await peers.close()

    asyncio.run(story())
    assert "event=peer_silent worker=gone" in caplog.text


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:6066"), ("::1", "http://[::1]:6066"), ("box", "http://box:6066")]
)
def test_the_address_of_a_listening_host(host: str, url: str) -> None:
    assert find_url(host, 6066) == url
    assert "0.0.0.0" not in find_url("0.0.0.0", 6066)
