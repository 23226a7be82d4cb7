"""Keys answer for every key that was added, whatever the order and size; a shard's keys are those of its tables."""

from __future__ import annotations

from pathlib import Path

import duckdb
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
from hypothesis import given, settings

from streams.feeds import Feeds
from streams.keys import KeySet, hash_texts, load_keys
from streams.store import CountingRules, Shard
from tests.logs import START, click, feed, impression, query

KEYS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20) | st.just(2**64 - 1), max_size=40)


@settings(deadline=None)
@given(st.lists(KEYS, max_size=12), KEYS)
def test_a_set_holds_what_was_added_and_nothing_else(added: list[list[int]], asked: list[int]) -> None:
    keys = KeySet()
    for some in added:
        keys.add(np.array(some, np.uint64))
    everything = {key for some in added for key in some}
    wanted = [*asked, *everything]
    assert keys.contains(np.array(wanted, np.uint64)).tolist() == [key in everything for key in wanted]
    assert len(keys) == sum(map(len, added))


def test_runs_are_merged_so_that_there_are_few() -> None:
    keys = KeySet()
    for low in range(0, 100_000, 100):
        keys.add(np.arange(low, low + 100, dtype=np.uint64))
    assert len(keys._runs) < 10
    assert keys.contains(np.arange(0, 100_000, 7, dtype=np.uint64)).all()


def test_keys_are_the_hashes_that_the_tables_hold(tmp_path: Path) -> None:
    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, CountingRules(retention_days=0))
    feed(shard, [query("e1", START), impression("e2", START, "i"), click("e3", START, "i"), click("e4", START, "absent")])
    shard.close()
    with duckdb.connect(str(path)) as con:
        known = load_keys(con)
        events, shown = hash_texts(Feeds(con), [pa.array(["e1", "e2", "e3", "e4", "e5"]), pa.chunked_array([["i"], ["absent"]])])
    assert known.seen.contains(events).tolist() == [True, True, True, True, False]
    assert known.impressions.contains(shown).tolist() == [True, False]
