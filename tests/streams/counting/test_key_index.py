"""A key set contains every key that was added, in any order and number; the keys of a shard are those of its tables."""

from __future__ import annotations

from pathlib import Path

import duckdb
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from streams.counting import key_index
from streams.counting.acceptance import accept
from streams.counting.connection import ShardConnection
from streams.counting.deduplication import add_keys
from streams.counting.key_index import KeySet, hash_texts, load_keys, to_session_keys
from streams.events.columns import to_columns
from streams.events.schema import Decoded, Reason, Reject
from streams.store.shard import CountingRules, Shard
from tests.support.logs import START, click, feed, impression, query

KEYS = st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20) | st.just(2**64 - 1), max_size=40)


@settings(deadline=None)
@given(st.lists(KEYS, max_size=4), st.lists(KEYS, max_size=12), KEYS)
def test_a_set_contains_what_was_added_and_nothing_else(
    runs: list[list[int]], batches: list[list[int]], asked: list[int]
) -> None:
    held = KeySet()
    held.add_runs(np.array(some, np.uint64) for some in runs)
    for some in batches:
        held.add(np.array(some, np.uint64))
    everything = {key for some in runs + batches for key in some}
    wanted = [*asked, *everything]
    assert held.contains(np.array(wanted, np.uint64)).tolist() == [key in everything for key in wanted]
    assert len(held) == sum(map(len, runs + batches))


def test_runs_are_merged_so_that_there_are_few() -> None:
    held = KeySet()
    for low in range(0, 100_000, 100):
        held.add(np.arange(low, low + 100, dtype=np.uint64))
    assert len(held._runs) < 10
    assert held.contains(np.arange(0, 100_000, 7, dtype=np.uint64)).all()


def test_keys_are_the_hashes_in_the_tables_each_in_its_session(tmp_path: Path) -> None:
    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, CountingRules(retention_days=0))
    feed(shard, [query("e1", START), impression("e2", START, "i"), click("e3", START, "i"), click("e4", START, "absent")])
    shard.close()
    with duckdb.connect(str(path)) as con:
        known = load_keys(con)
        events, shown, sessions = hash_texts(
            ShardConnection(con),
            [pa.array(["e1", "e2", "e3", "e4", "e5"]), pa.chunked_array([["i"], ["absent"]]), pa.array(["s", "t"])],
        )
    own, other = to_session_keys(sessions)
    assert not known.seen.contains(events ^ other).any()
    events, shown = events ^ own, shown ^ own
    assert known.seen.contains(events).tolist() == [True, True, True, True, False]
    assert known.impressions.contains(shown).tolist() == [True, False]


def test_keys_are_found_however_far_the_filter_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "FILTER_WIDTH", 4)
    held, rng = KeySet(), np.random.default_rng(0)
    added = rng.integers(0, 2**64 - 1, 30_000, dtype=np.uint64)
    for size, low in enumerate(range(0, 30_000, 1000)):
        held.add(added[low : low + 1000])
        assert held.contains(added[: low + 1000]).all(), size
    others = np.setdiff1d(rng.integers(0, 2**64 - 1, 10_000, dtype=np.uint64), added)
    assert not held.contains(others).any()
    assert held._filter.may_contain(others).mean() < 0.15


def test_a_file_is_read_in_parts_and_each_part_stays_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "LOAD_KEYS", 2000)
    with duckdb.connect(str(tmp_path / "shard.duckdb")) as con:
        con.execute("CREATE TABLE seen AS SELECT hash(i) AS key FROM range(5000) t(i)")
        con.execute("CREATE TABLE impressions AS SELECT hash(i) AS key FROM range(10) t(i)")
        known = load_keys(con)
        held = con.execute("SELECT key FROM seen").fetchnumpy()["key"]
    assert known.seen.contains(np.append(held, np.uint64(1))).tolist() == [True] * 5000 + [False]
    assert len(known.seen._runs) == 3
    assert (len(known.seen), len(known.impressions)) == (5000, 10)


def test_ids_that_share_a_key_are_distinguished_inside_a_batch_and_between_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_index, "HASH", "SELECT 7::UBIGINT AS key FROM texts")
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules())
    one, two, three, four = (query(f"e{n}", START + n) for n in range(4))
    feed(shard, [one, two, two, one])
    feed(shard, [three, one, two, four, three], start=4)
    assert (shard.totals().counted, shard.totals().duplicates) == (4, 5)
    shard.close()


def test_a_line_without_an_id_may_share_its_key_with_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "HASH", "SELECT 7::UBIGINT AS key FROM texts")
    shard = Shard.open(tmp_path / "shard.duckdb", CountingRules())
    feed(shard, [query("e1", START), b"{", b"{}"], batch=1)
    feed(shard, [b"{", b"[", query("e1", START)], start=3)
    totals = shard.totals()
    assert (totals.counted, totals.duplicates, totals.quarantined) == (1, 2, {"malformed": 2, "invalid": 1})
    shard.close()


def test_a_batch_gets_the_keys_of_its_events_and_then_of_its_rejects(tmp_path: Path) -> None:
    rejects = [Reject(Reason.INVALID, "", b"{}", None, None, 3, 1), Reject(Reason.INVALID, "", b"{}", "e1", START, 0, 5, "s")]
    columns = to_columns(Decoded([], [], [], rejects))
    batch = accept(columns, None, CountingRules(), START)
    with duckdb.connect(str(tmp_path / "keys.duckdb")) as con:
        tables, lookup = add_keys(ShardConnection(con), batch)
        hashed, session = hash_texts(ShardConnection(con), [pa.array(["e1"]), pa.array(["s"])])
    assert lookup.select(["event_id", "ts_us"]).to_pydict() == {"event_id": [None, "e1"], "ts_us": [-1, START]}
    assert lookup["seq"].to_pylist() == batch.reject_seq.tolist() == [23, 6]
    assert lookup["key"][1].as_py() == hashed[0] ^ to_session_keys(session)[0]
    assert [table.num_rows for table in tables] == [0, 0, 0]
