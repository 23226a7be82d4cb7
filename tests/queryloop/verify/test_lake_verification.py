"""The lake's rows give the live counts again; a changed count and a changed file are named; days not in the lake are left out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from queryloop.verify.lake_verification import NEXT_NOT_EXPORTED, NOT_EXPORTED, verify_lake
from queryloop.verify.shard_verification import Verdict
from streams.api.snapshot import dump_counts, read_counts
from streams.events.rules import CountingRules
from streams.lake.files import Lake, LakeSettings
from streams.store.lake_export import export_mature
from streams.store.shard import Shard
from tests.support.logs import HOUR, START, click, day, difficult_logs, feed, impression, query

DAY = 86_400
TODAY = day(START)
TOMORROW = TODAY + timedelta(days=1)
MIDNIGHT = START - START % DAY + DAY
LOG = [
    query("q1", START, "red shoes"),
    impression("e1", START + 1, "i", ["A", "b"]),
    click("c1", START + 2, "i", 1),
    query("q2", MIDNIGHT - 60, "blue  shoes"),
    query("q3", MIDNIGHT + 60, "green"),
    impression("e2", MIDNIGHT + 70, "j", ["a"]),
]
LATER = query("later", MIDNIGHT + 3 * DAY, session_id="t")


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[list[Shard]]:
    opened = [Shard.open(tmp_path / f"shard-{number}.duckdb", CountingRules()) for number in (0, 1)]
    yield opened
    for shard in opened:
        shard.close()


def export(shards: list[Shard], folder: Path) -> Lake:
    lake = Lake.local(folder)
    for number, shard in enumerate(shards):
        export_mature(shard, number, lake, LakeSettings(maturity_floor_s=0))
    return lake


def verify(shards: list[Shard], lake: Lake) -> Verdict:
    live = {number: read_counts(dump_counts(shard)) for number, shard in enumerate(shards)}
    return verify_lake(live, lake, lambda done, total: None)


def test_equal_over_shards_and_midnight(shards: list[Shard], tmp_path: Path) -> None:
    feed(shards[0], [*LOG, LATER])
    feed(shards[1], [line.replace(b'"session_id": "s"', b'"session_id": "u"') for line in [*LOG, LATER]])
    verdict = verify(shards, export(shards, tmp_path))
    assert verdict.equal and verdict.days == [TODAY, TOMORROW]
    assert verdict.left_out == {}, "the last day has a query alone, which counts nothing"


def test_a_changed_count_is_named(shards: list[Shard], tmp_path: Path) -> None:
    feed(shards[0], [*LOG, LATER])
    lake = export(shards, tmp_path)
    shards[0].reader().execute("INSERT INTO window_deltas VALUES ($day, 'q', 'b', 1, 0, 1)", {"day": TODAY})
    shards[0].reader().execute("DELETE FROM cooccurrence_deltas WHERE next_query = 'green'")
    found = verify(shards, lake).differences.to_pylist()
    assert [(row["kind"], row["other"], row["live"], row["recounted"]) for row in found] == [
        ("cooccurrence", "green", [0], [1]),
        ("window", "b", [1, 2], [1, 1]),
    ]


def test_a_changed_day_and_its_neighbour_are_left_out_until_they_are_exported(shards: list[Shard], tmp_path: Path) -> None:
    feed(shards[0], [*LOG, LATER])
    lake = export(shards, tmp_path)
    feed(shards[0], [query("q4", MIDNIGHT + 80, "yellow")], start=7)
    verdict = verify(shards, lake)
    assert verdict.equal and not verdict.complete
    assert verdict.left_out == {TODAY: NEXT_NOT_EXPORTED, TOMORROW: NOT_EXPORTED}
    assert verify(shards, export(shards, tmp_path)).complete


def test_a_lost_file_is_a_difference(shards: list[Shard], tmp_path: Path) -> None:
    feed(shards[0], [*LOG, LATER])
    lake = export(shards, tmp_path)
    (lost,) = (tmp_path / "impressions" / f"day={TOMORROW}").glob("*.parquet")
    lost.unlink()
    [row] = verify(shards, lake).differences.to_pylist()
    assert (row["day"], row["live"], row["recounted"]) == (TOMORROW, [1, 0], [0, 0])


def test_nothing_counted_is_equal(tmp_path: Path) -> None:
    assert verify([], Lake.local(tmp_path)).equal


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(log=difficult_logs(), batch=st.integers(1, 30))
def test_difficult_logs_are_equal(log: list[bytes], batch: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("lake")
    shard = Shard.open(folder / "shard.duckdb", CountingRules())
    feed(shard, [*log, query("end", START + 22 * DAY + HOUR, session_id="end")], batch)
    verdict = verify([shard], export([shard], folder))
    assert verdict.equal and not verdict.left_out
    shard.close()
