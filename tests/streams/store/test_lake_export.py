"""A mature day is exported to the lake as the shard has it, whole or not at all, and again when it changes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import pytest

from streams.lake import reader
from streams.lake.files import Lake, LakeSettings
from streams.lake.reader import read_cooccurrence, read_impressions, read_queries
from streams.store.lake_export import export_mature, mature_days
from streams.store.shard import CountingRules, Shard
from tests.support.logs import DATA, NOW, click, feed, impression, query, real_log, rows
from tests.support.recount import day_of, normal_form, recount

DAY = date(2021, 3, 15)
NOON = datetime(2021, 3, 15, 12, tzinfo=UTC).timestamp()
NEXT_MIDNIGHT = NOON + 12 * 3600
SETTINGS = LakeSettings(maturity_floor_s=3600)
MATURE = query("late", NEXT_MIDNIGHT + 3600, "end", session_id="z")


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


def test_a_day_is_mature_when_the_floor_has_passed_and_the_click_delays_p99_too(shard: Shard) -> None:
    feed(shard, [impression("e1", NOON), query("e2", NEXT_MIDNIGHT + 3599)])
    assert mature_days(shard, SETTINGS) == []
    feed(shard, [MATURE], start=2)
    assert mature_days(shard, SETTINGS) == [DAY]
    feed(shard, [click("e3", NOON + 7200)], start=3)
    assert mature_days(shard, SETTINGS) == []
    feed(shard, [query("e4", NEXT_MIDNIGHT + 7200)], start=4)
    assert mature_days(shard, SETTINGS) == [DAY]


def test_an_exported_day_has_its_impressions_labels_queries_and_pairs(shard: Shard, tmp_path: Path) -> None:
    fields = {"task": "suggest", "release": "r0001", "predicted": [0.1, 0.2], "logprob": -7.5, "decoding": {"temperature": 0.9}}
    shown = impression("e1", NOON, "i", ["A a", "b"], query="Q", user_id="u", context="c", **fields)
    log = [
        shown,
        click("e2", NOON + 9, "i", 1),
        click("e3", NOON + 5, "i", 1),
        impression("e4", NOON + 1, "j", ["x"]),
        query("e5", NOON, "First"),
        query("e6", NOON + 1, "second"),
        MATURE,
    ]
    feed(shard, log)
    assert export_mature(shard, 3, Lake.local(tmp_path / "lake"), SETTINGS) == [DAY]
    assert (tmp_path / "lake/impressions/day=2021-03-15/shard-3.parquet").is_file()
    first, second = read_impressions(Lake.local(tmp_path / "lake"), DAY, DAY).to_pylist()
    assert first == {
        "impression_id": "i",
        "event_id": "e1",
        "ts_us": NOON * 1e6,
        "session_id": "s",
        "user_id": "u",
        "query": "Q",
        "query_norm": "q",
        "task": "suggest",
        "items": ["A a", "b"],
        "clicked": [False, True],
        "click_ts_us": [None, (NOON + 5) * 1e6],
        "release": "r0001",
        "predicted": [0.1, 0.2],
        "logprob": -7.5,
        "decoding": '{"temperature":0.9}',
        "extra": '{"context":"c"}',
        "day": DAY,
    }
    assert (second["clicked"], second["click_ts_us"], second["decoding"]) == ([False], [None], None)
    assert read_queries(Lake.local(tmp_path / "lake"), DAY, DAY)["query"].to_pylist() == ["First", "second"]
    assert rows(read_cooccurrence(Lake.local(tmp_path / "lake"), DAY, DAY)) == [("first", "second", 1)]
    assert reader.days(Lake.local(tmp_path / "lake")) == [DAY]


def test_a_day_is_exported_once_and_again_when_it_changes(shard: Shard, tmp_path: Path) -> None:
    feed(shard, [impression("e1", NOON), MATURE])
    assert export_mature(shard, 0, Lake.local(tmp_path), SETTINGS) == [DAY]
    assert export_mature(shard, 0, Lake.local(tmp_path), SETTINGS) == []
    assert shard.totals().days_exported == [DAY]
    feed(shard, [click("e2", NOON + 1), click("e2", NOON + 1)], start=2)
    assert export_mature(shard, 0, Lake.local(tmp_path), SETTINGS) == [DAY]
    assert read_impressions(Lake.local(tmp_path), DAY, DAY)["clicked"].to_pylist() == [[True, False]]


def test_a_day_that_an_earlier_impression_empties_is_removed_from_the_lake(shard: Shard, tmp_path: Path) -> None:
    feed(shard, [impression("e2", NOON), MATURE])
    export_mature(shard, 0, Lake.local(tmp_path), SETTINGS)
    feed(shard, [impression("e1", NOON - 86_400)], start=2)
    assert export_mature(shard, 0, Lake.local(tmp_path), SETTINGS) == [date(2021, 3, 14), DAY]
    assert reader.days(Lake.local(tmp_path)) == [date(2021, 3, 14)]


def test_after_a_crash_while_writing_the_old_day_is_there_and_written_again(
    shard: Shard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(shard, [impression("e1", NOON), MATURE])
    export_mature(shard, 0, Lake.local(tmp_path), SETTINGS)
    feed(shard, [click("e2", NOON + 1)], start=2)

    def crash(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.parquet.ParquetWriter", crash)
        with pytest.raises(OSError, match="power cut"):
            export_mature(shard, 0, Lake.local(tmp_path), SETTINGS)
    assert read_impressions(Lake.local(tmp_path), DAY, DAY)["clicked"].to_pylist() == [[False, False]]
    assert export_mature(shard, 0, Lake.local(tmp_path), SETTINGS) == [DAY]
    assert read_impressions(Lake.local(tmp_path), DAY, DAY)["clicked"].to_pylist() == [[True, False]]


def test_each_shard_has_its_own_files_and_duckdb_reads_the_folder(tmp_path: Path) -> None:
    for partition in (0, 1):
        shard = Shard.open(tmp_path / f"{partition}.duckdb", CountingRules(retention_days=0))
        feed(shard, [query(f"e{partition}", NOON, "a"), query(f"f{partition}", NOON + 1, "b"), MATURE])
        export_mature(shard, partition, Lake.local(tmp_path / "lake"), SETTINGS)
        shard.close()
    assert rows(read_cooccurrence(Lake.local(tmp_path / "lake"), DAY, DAY)) == [("a", "b", 2)]
    sql = "SELECT day, count(*) FROM read_parquet($files, hive_partitioning = true) GROUP BY day"
    assert duckdb.execute(sql, {"files": f"{tmp_path}/lake/queries/*/*.parquet"}).fetchall() == [(DAY, 4)]


def test_an_empty_lake_reads_as_no_rows(tmp_path: Path) -> None:
    assert reader.days(Lake.local(tmp_path)) == []
    assert len(read_impressions(Lake.local(tmp_path), DAY, DAY)) == 0
    assert read_impressions(Lake.local(tmp_path), DAY, DAY).column_names[-1] == "day"
    assert len(read_cooccurrence(Lake.local(tmp_path), DAY, DAY)) == 0


@pytest.mark.parametrize("name", ["clara2_dev.jsonl.gz", "mimics_duo_dev.jsonl.gz"])
def test_the_lake_of_a_real_log_equals_the_recount(shard: Shard, tmp_path: Path, name: str) -> None:
    if not (DATA / name).exists():
        pytest.skip("no ../shared/data")
    log = real_log(name)
    for start in range(0, len(log), 20_000):
        feed(shard, log[start : start + 20_000], start=start)
        export_mature(shard, 0, Lake.local(tmp_path), SETTINGS)
    shard.finish(NOW * 2)
    export_mature(shard, 0, Lake.local(tmp_path), SETTINGS)
    exported = shard.totals().days_exported
    expected = recount(log)
    table = read_impressions(Lake.local(tmp_path), exported[0], exported[-1])
    answered = table.to_pylist()
    found = {(row["session_id"], row["impression_id"]): (row["query_norm"], row["items"], row["click_ts_us"]) for row in answered}
    assert found == {
        name: (normal_form(event["query"]), event["items"], [expected.clicked.get((name, k)) for k in range(len(event["items"]))])
        for name, event in expected.impressions.items()
        if day_of(event["us"]) in exported
    }
    assert table["clicked"].to_pylist() == [[t is not None for t in ts] for ts in table["click_ts_us"].to_pylist()]
    assert len(found) > 1000
