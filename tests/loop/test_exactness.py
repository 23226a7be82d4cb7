"""Exactness: order, repeats, batching, crashes and repairs of a log change no count.

`tests.streams.store.test_shard` delivers logs with one version of each event in another order than they are recounted in; here
ids have several versions, so that the order of arrival decides, and the log is recounted as it is delivered.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from streams.events.batch_decoder import decode_columns
from streams.store.shard import CountingRules, Shard
from tests.support.logs import NOW, START, click, day, feed, impression, query, repaired_logs, rows
from tests.support.recount import Recount, recount

KEEP_ALL = CountingRules(retention_days=0)
DAYS = [day(START + number * 86_400) for number in (1, 14, 21)]
SLOW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(SLOW, max_examples=200)

Counts = tuple[object, ...]


@contextmanager
def new_shard() -> Iterator[tuple[Path, Shard]]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "shard.duckdb"
        shard = Shard.open(path, KEEP_ALL)
        yield path, shard


def counts_of(shard: Shard) -> Counts:
    """All counts of a finished shard."""
    totals = shard.totals()
    assert totals.pending == 0
    assert totals.events == totals.counted + totals.duplicates + sum(totals.quarantined.values())
    tables = [(rows(shard.windows(as_of)), rows(shard.cooccurrence(as_of))) for as_of in DAYS]
    quarantined = Counter((row["event_id"], row["reason"]) for row in shard.quarantine().to_pylist())
    return tables, quarantined, totals.counted, totals.events


def expected_counts(expected: Recount, delivered: int) -> Counts:
    tables = [(expected.windows(as_of), expected.cooccurrence(as_of)) for as_of in DAYS]
    return tables, expected.quarantined, expected.counted, delivered


def apply(shard: Shard, log: list[bytes], first: int, end: int, write: bool = True) -> None:
    records = [(offset, log[offset]) for offset in range(first, end)]
    shard.apply(decode_columns(records), topic_id="t", first_offset=first, next_offset=end, now=NOW, write=write)


@contextmanager
def small_memory(rows_kept: int) -> Iterator[None]:
    """Let shards keep so few rows in memory that they look up nearly everything in the file."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MAX_EVENTS", "MAX_LISTS", "MAX_CLICKED", "MAX_QUERIES", "RUN_ROWS"):
            patch.setattr(f"streams.counting.recent_rows.{name}", rows_kept)
        yield


def check_repairs(log: list[bytes], seed: int, batch: int) -> None:
    chance = random.Random(seed)
    delivered = log + chance.choices(log, k=len(log) // 2) if log else []
    expected = expected_counts(recount(delivered), len(delivered))
    for size, rows_kept, written in ((1, 1_000, 1.0), (batch, 1_000, 0.2), (batch, chance.randint(1, 6), 0.2), (2, 20, 0.0)):
        with small_memory(rows_kept), new_shard() as (_, shard):
            for first in range(0, len(delivered), size):
                end, write = min(first + size, len(delivered)), chance.random() < written
                apply(shard, delivered, first, end, write=write)
            shard.finish(NOW)
            assert counts_of(shard) == expected, (size, rows_kept, written)
            shard.close()


def check_crashes(log: list[bytes], seed: int) -> None:
    chance = random.Random(seed)
    expected = expected_counts(recount(log), len(log))
    with small_memory(chance.choice([2, 1_000])), new_shard() as (path, shard):
        while (first := (shard.position() or ("t", 0))[1]) < len(log):
            end = min(len(log), first + chance.randint(1, 9))
            if chance.random() < 0.4:
                shard = crash(shard, path, log, first, end, chance)
            else:
                write = chance.random() < 0.5
                apply(shard, log, max(0, first - chance.randint(0, 3)), end, write)
            if chance.random() < 0.2:
                shard = kill(shard, path)
        shard.finish(NOW)
        assert counts_of(shard) == expected
        shard.close()


@SLOW
@given(log=repaired_logs(), seed=st.integers(0, 2**32), batch=st.integers(1, 40))
@example([click("c", START + 1, position=5), click("c", START + 1), impression("e", START)], 0, 3)
@example([impression("e", START), click("c", START + 1, position=5), click("c", START + 1)], 0, 3)
@example([click("c", START + 1), impression("e", START + 2), impression("f", START), click("c", START + 3)], 0, 4)
def test_repairs_count_by_the_order_of_arrival_whatever_the_batching(log: list[bytes], seed: int, batch: int) -> None:
    check_repairs(log, seed, batch)


@SLOW
@given(log=repaired_logs(), seed=st.integers(0, 2**32))
def test_any_prefix_crash_and_replay_gives_the_counts_of_an_undisturbed_run(log: list[bytes], seed: int) -> None:
    check_crashes(log, seed)


@pytest.mark.full
@MANY
@given(log=repaired_logs(), seed=st.integers(0, 2**32), batch=st.integers(1, 40))
def test_repairs_count_over_many_logs(log: list[bytes], seed: int, batch: int) -> None:
    check_repairs(log, seed, batch)


@pytest.mark.full
@MANY
@given(log=repaired_logs(), seed=st.integers(0, 2**32))
def test_crashes_change_nothing_over_many_logs(log: list[bytes], seed: int) -> None:
    check_crashes(log, seed)


WIDE = ["a", "b", "c", "d"]
REFUSED = [impression("i1", START + 1), click("c", START + 2, position=3)]
EARLIER_LIST = impression("i2", START, items=WIDE)
BROKEN = b'{"type": "click", "event_id": "c"}'


@pytest.mark.parametrize(
    "log",
    [
        [impression("i1", START + 1), click("c", START + 360_000), click("c", START), impression("i2", START)],
        [*REFUSED, click("c", START + 3), EARLIER_LIST],
        [*REFUSED, EARLIER_LIST, click("c", START + 3)],
        [*REFUSED, query("c", START + 3), EARLIER_LIST],
        [*REFUSED, EARLIER_LIST, query("c", START + 3)],
        [*REFUSED, BROKEN, EARLIER_LIST],
        [*REFUSED, EARLIER_LIST, BROKEN],
        [*REFUSED, click("c", START + 3, position=2), EARLIER_LIST],
        [
            impression("j", START, "j"),
            click("c", START, "j", position=3),
            REFUSED[0],
            click("c", START + 3, position=2),
            EARLIER_LIST,
        ],
    ],
)
@pytest.mark.parametrize("ends", [(4,), (1, 4), (2, 4), (3, 4), (1, 2, 4), (1, 3, 4), (2, 3, 4), (1, 2, 3, 4)])
def test_a_click_that_one_list_refused_and_an_earlier_list_accepts_counts_by_the_order_of_arrival(
    log: list[bytes], ends: tuple[int, ...]
) -> None:
    with new_shard() as (_, shard):
        for first, end in pairwise((0, *ends[:-1], len(log))):
            apply(shard, log, first, end)
        shard.finish(NOW)
        assert counts_of(shard) == expected_counts(recount(log), len(log))
        shard.close()


def test_without_splitting_a_batch_a_repaired_click_is_lost() -> None:
    """Splitting at `deduplication.find_split_points` matters: without it the counts differ from the oracle's."""
    log = [impression("e", START), click("c", START + 1, position=5), click("c", START + 1)]
    expected = expected_counts(recount(log), len(log))
    with new_shard() as (_, shard):
        apply(shard, log, 0, 3)
        assert counts_of(shard) == expected
        shard.close()
    with pytest.MonkeyPatch.context() as patch, new_shard() as (_, shard):
        patch.setattr("streams.store.shard.deduplication.find_split_points", lambda *_: [])
        apply(shard, log, 0, 3)
        assert counts_of(shard) != expected
        shard.close()


def crash(shard: Shard, path: Path, log: list[bytes], first: int, end: int, chance: random.Random) -> Shard:
    """Let a batch fail at one of its steps; return the same shard, or the shard opened again as after a crash."""
    step = chance.choice(
        [
            "count_queries",
            "retention.mark_days_dirty",
            "attribution.attribute_batch",
            "deduplication.find_split_points",
            "save_totals",
        ]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"streams.store.shard.{step}", fail)
        with pytest.raises(OSError, match="disk full"):
            apply(shard, log, first, end)
    assert (shard.position() or ("t", 0))[1] == first
    if chance.random() < 0.5:
        return shard
    shard.close()
    return Shard.open(path, KEEP_ALL)


def kill(shard: Shard, path: Path) -> Shard:
    """Open a shard again as after kill -9: what was not written is lost, with its offsets."""
    shard._con.close()
    return Shard.open(path, KEEP_ALL)


def fail(*_: object) -> None:
    raise OSError("disk full")


def test_a_transaction_that_was_not_committed_leaves_the_shard_as_before_it(tmp_path: Path) -> None:
    path = tmp_path / "shard.duckdb"
    shard = Shard.open(path, KEEP_ALL)
    feed(shard, [impression("e1", START), query("e2", START)])
    before = shard.totals()
    cursor = shard._con
    cursor.execute("BEGIN")
    cursor.execute("DELETE FROM seen; DELETE FROM impressions; UPDATE state SET next_offset = 99")
    shard.close()
    again = Shard.open(path, KEEP_ALL)
    assert again.totals() == before
    feed(again, [click("e3", START + 1)], start=2)
    assert again.totals().counted == 3
    again.close()


def test_the_keys_of_a_failed_batch_do_not_make_its_events_duplicates(tmp_path: Path) -> None:
    shard = Shard.open(tmp_path / "shard.duckdb", KEEP_ALL)
    log = [query("e1", START), impression("e2", START), click("e3", START + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streams.store.shard.save_totals", fail)
        with pytest.raises(OSError, match="disk full"):
            feed(shard, log)
    feed(shard, log)
    assert (shard.totals().counted, shard.totals().duplicates) == (3, 0)
    shard.close()
