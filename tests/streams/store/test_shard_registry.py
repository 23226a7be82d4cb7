"""The shard registry: entries are added and removed by their own worker alone, and a damaged one names no holder."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.store.shard_registry import ShardHolder, ShardRegistry, advertised_url

ONE, TWO = ShardHolder("one", "http://127.0.0.1:1", 11), ShardHolder("two", "http://127.0.0.1:2", 22)


def test_an_entry_is_added_found_and_removed_only_by_its_own_worker(tmp_path: Path) -> None:
    one, two = ShardRegistry(tmp_path, ONE), ShardRegistry(tmp_path, TWO)
    assert one.find(3) is None
    one.add(3)
    assert two.find(3) == ONE
    assert two.find_others([2, 3]) == {ONE: [3]}
    assert one.find_others([3]) == {}
    two.add(3)
    one.remove(3)
    assert one.find(3) == TWO
    two.remove(3)
    assert one.find(3) is None


@pytest.mark.parametrize("text", ["", "{", '{"worker": 3}', "[]", '"x"'])
def test_a_damaged_entry_names_no_holder(tmp_path: Path, text: str) -> None:
    registry = ShardRegistry(tmp_path, ONE)
    registry.add(0)
    (tmp_path / "run" / "shards" / "0.json").write_text(text)
    assert registry.find(0) is None


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:6066"), ("::1", "http://[::1]:6066"), ("box", "http://box:6066")]
)
def test_the_advertised_url_of_a_listening_host(host: str, url: str) -> None:
    assert advertised_url(host, 6066) == url
    assert "0.0.0.0" not in advertised_url("0.0.0.0", 6066)
