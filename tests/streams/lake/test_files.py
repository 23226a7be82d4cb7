"""The lake is a folder or a bucket with the same files, each complete or absent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from streams.lake.files import Lake, LakeSettings, list_files, open_lake, put_file, remove_file
from streams.lake.reader import days, read_cooccurrence, read_impressions, read_queries
from streams.store.lake_export import export_mature
from streams.store.shard import CountingRules, Shard
from tests.streams.store.test_lake_export import DAY, MATURE, NOON
from tests.support.lake_servers import s3_lake
from tests.support.logs import click, feed, impression, query, rows

LOG = [impression("e1", NOON), query("e2", NOON, "a"), query("e3", NOON + 1, "b"), MATURE]


@pytest.fixture(params=["folder", "bucket"])
def lake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    if request.param == "folder":
        yield Lake.local(tmp_path / "lake")
        return
    with s3_lake(monkeypatch) as settings:
        yield open_lake(tmp_path, settings)


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    opened = Shard.open(tmp_path / "shard.duckdb", CountingRules(retention_days=0))
    yield opened
    opened.close()


def test_a_lake_is_written_read_and_written_again_in_a_folder_and_in_a_bucket(lake: Lake, shard: Shard) -> None:
    settings = LakeSettings()
    assert days(lake) == []
    assert len(read_impressions(lake, DAY, DAY)) == 0
    feed(shard, LOG)
    assert export_mature(shard, 5, lake, settings) == [DAY]
    assert [(file.day, file.partition) for file in list_files(lake, "impressions")] == [(DAY, 5)]
    assert read_impressions(lake, DAY, DAY)["clicked"].to_pylist() == [[False, False]]
    assert read_queries(lake, DAY, DAY)["query"].to_pylist() == ["a", "b"]
    assert rows(read_cooccurrence(lake, DAY, DAY)) == [("a", "b", 1)]
    feed(shard, [click("e4", NOON + 2)], start=4)
    assert export_mature(shard, 5, lake, settings) == [DAY]
    assert read_impressions(lake, DAY, DAY)["clicked"].to_pylist() == [[True, False]]
    assert days(lake) == [DAY]


def test_an_unfinished_file_never_appears(lake: Lake) -> None:
    def fill(text: bytes) -> None:
        put_file(lake, "queries", DAY, 0, lambda path: path.write_bytes(text) and None)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("power cut")

    with pytest.raises(OSError, match="power cut"):
        put_file(lake, "queries", DAY, 0, fail)
    assert list_files(lake, "queries") == []
    fill(b"whole")
    with pytest.raises(OSError, match="power cut"):
        put_file(lake, "queries", DAY, 0, fail)
    (file,) = list_files(lake, "queries")
    with lake.files.open_input_file(file.path) as stored:
        assert stored.read() == b"whole"
    remove_file(lake, "queries", DAY, 0)
    remove_file(lake, "queries", DAY, 0)
    assert list_files(lake, "queries") == []


def test_other_files_are_ignored(tmp_path: Path) -> None:
    lake = Lake.local(tmp_path)
    for name in ("queries/day=2021-03-15/.shard-0.parquet.writing", "queries/_SUCCESS", "queries/day=2021-03-15/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("not Parquet")
    assert days(lake) == []
    assert len(read_queries(lake, DAY, DAY)) == 0


def test_duckdb_and_pandas_read_the_folder_as_one_table_with_a_day(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    lake = Lake.local(tmp_path / "lake")
    for partition in (0, 1):
        shard = Shard.open(tmp_path / f"{partition}.duckdb", CountingRules(retention_days=0))
        later = [impression(f"l{partition}", NOON + 86_400, f"l{partition}", items=["x"], user_id="u", logprob=-1.0)]
        end = [query(f"z{partition}", NOON + 3 * 86_400)]
        feed(shard, [impression(f"e{partition}", NOON, f"i{partition}"), *later, *end])
        export_mature(shard, partition, lake, LakeSettings())
        shard.close()
    (tmp_path / "lake/impressions/day=2021-03-15/.shard-7.parquet.writing").write_bytes(b"half")
    sql = (
        "SELECT day, count(*), sum(len(items))::INT FROM read_parquet($files, hive_partitioning = true) GROUP BY day ORDER BY day"
    )
    expected = [(DAY, 2, 4), (date(2021, 3, 16), 2, 2)]
    assert duckdb.execute(sql, {"files": f"{tmp_path}/lake/impressions/*/*.parquet"}).fetchall() == expected
    frame = pandas.read_parquet(tmp_path / "lake/impressions")
    assert sorted(map(str, frame["day"])) == ["2021-03-15"] * 2 + ["2021-03-16"] * 2
    assert sorted(frame["impression_id"]) == ["i0", "i1", "l0", "l1"]
    schemas = [pq.read_schema(file.path) for file in list_files(lake, "impressions")]
    assert len(schemas) == 4
    assert all(schema.equals(schemas[0], check_metadata=True) and "day" not in schema.names for schema in schemas)


def test_the_location_comes_from_the_settings(tmp_path: Path) -> None:
    assert open_lake(tmp_path, LakeSettings()).root == str(tmp_path / "lake")
    assert open_lake(tmp_path, LakeSettings(url=f"file://{tmp_path}/a%20b")).root == f"{tmp_path}/a b"
    bucket = open_lake(tmp_path, LakeSettings(url="s3://bucket/a/b/", region="eu-west-1"), {})
    assert (bucket.root, bucket.url) == ("bucket/a/b", "s3://bucket/a/b/")
    assert bucket.files.region == "eu-west-1"
    assert open_lake(tmp_path, LakeSettings(url="s3://bucket"), {"AWS_REGION": "sa-east-1"}).files.region == "sa-east-1"


@pytest.mark.parametrize(
    "url", ["lake", "/srv/lake", "gs://bucket", "s3:///x", "file://host/x", "file:///", "s3://key:secret@bucket/x"]
)
def test_another_kind_of_url_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="s3://BUCKET/PREFIX"):
        LakeSettings(url=url)


def test_an_absent_bucket_is_an_os_error(tmp_path: Path, shard: Shard, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_lake(monkeypatch) as settings:
        lake = open_lake(tmp_path, settings.model_copy(update={"url": "s3://queryloop-nobody/x"}))
        feed(shard, LOG)
        with pytest.raises(OSError, match="queryloop-nobody"):
            export_mature(shard, 0, lake, settings)
        assert shard.totals().days_exported == []
        assert export_mature(shard, 0, open_lake(tmp_path, settings), settings) == [DAY]
