"""Exports: one read has all live counts, of every shard and worker, equal to a plain recount of the log."""

from __future__ import annotations

import io
import re
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlencode

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streams.api.exports import BATCH_ROWS, EXPORTS, FORMATS, _sum_parts
from streams.worker.settings import StreamsSettings
from tests.streams.api.test_endpoints import AS_OF, LOG, Group, group  # noqa: F401 - the fixture
from tests.support.recount import recount

KEY = {"Authorization": "Bearer letmein"}


def url_of(settings: StreamsSettings, path: str, **parameters: Any) -> str:
    return f"http://127.0.0.1:{settings.worker.port}{path}?{urlencode(parameters)}"


def open_when_whole(request: urllib.request.Request) -> Any:
    """Open an export; 503 says that a partition is just moving or another export runs, and when to ask again."""
    for _ in range(20):
        try:
            return urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            with error:
                Event().wait(float(error.headers["Retry-After"]))
    raise AssertionError(f"{request.full_url}: 503 twenty times")


def read(settings: StreamsSettings, name: str, **parameters: Any) -> pa.Table:
    """Return an export as a table, from its Arrow or its Parquet form by the name's ending."""
    request = urllib.request.Request(url_of(settings, f"/v1/{name}", **parameters), headers=KEY)
    with open_when_whole(request) as answer:
        assert answer.headers["Queryloop-Partitions"] == "0,1" and answer.headers["Queryloop-Missing"] is None
        body = answer.read()
    return pa.ipc.open_stream(body).read_all() if name.endswith("arrow") else pq.read_table(io.BytesIO(body))


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_every_worker_exports_the_windows_and_successors_of_all_shards(group: Group, form: str) -> None:  # noqa: F811
    wanted = recount(LOG[:-1])
    for _, settings in group:
        windows = read(settings, f"windows.{form}")
        assert windows.column_names == ["query", "item", "position", "impressions", "clicks", "raw_ctr"]
        rows = windows.to_pylist()
        assert sorted(tuple(row.values())[:5] for row in rows) == sorted(wanted.windows(AS_OF))
        assert all(row["raw_ctr"] == row["clicks"] / row["impressions"] for row in rows)
        successors = read(settings, f"successors.{form}").to_pylist()
        assert sorted(tuple(row.values()) for row in successors) == sorted(wanted.cooccurrence(AS_OF))


def test_an_export_of_another_day_may_be_empty_and_has_its_columns(group: Group) -> None:  # noqa: F811
    table = read(group[0][1], "windows.parquet", as_of="2001-01-01")
    assert table.num_rows == 0 and table.column_names[0] == "query"


def test_an_export_needs_the_key_and_known_parameters(group: Group) -> None:  # noqa: F811
    settings = group[0][1]
    for url, headers, status in (
        (url_of(settings, "/v1/windows.parquet"), {}, 401),
        (url_of(settings, "/v1/windows.parquet", day="2020-01-01"), KEY, 400),
        (url_of(settings, "/v1/windows.csv"), KEY, 404),
    ):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30)
        with raised.value as error:
            assert error.code == status


EXAMPLES = re.findall(r"```py\n(.*?)```", Path("docs/analysis.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_documented_examples_of_pandas_and_duckdb_read_all_counts(
    group: Group,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUERYLOOP_WORKER_KEY", "letmein")
    with_pandas, with_duckdb = (example.replace(":6066", f":{group[0][1].worker.port}") for example in EXAMPLES)
    cells = recount(LOG[:-1]).windows(AS_OF)
    names: dict[str, Any] = {}
    exec(with_pandas, names)  # noqa: S102 - our own documentation
    assert len(names["windows"]) == len(cells) and names["windows"]["clicks"].sum() == sum(cell[4] for cell in cells)
    exec(with_duckdb, names)  # noqa: S102 - our own documentation
    wanted = Counter[str]()
    for query, _, _, _, clicks in cells:
        wanted[query] += clicks
    assert dict(zip(names["top"]["query"], names["top"]["clicks"], strict=True)) == wanted


def test_duckdb_reads_the_file_that_the_documented_curl_writes(group: Group, tmp_path: Path) -> None:  # noqa: F811
    url, file = url_of(group[0][1], "/v1/windows.parquet"), tmp_path / "windows.parquet"
    subprocess.run(["curl", "-fsS", "--retry", "5", "-H", "Authorization: Bearer letmein", "-o", file, url], check=True)
    (found,) = duckdb.sql(f"SELECT count(*), sum(clicks) FROM '{file}'").fetchall()
    cells = recount(LOG[:-1]).windows(AS_OF)
    assert found == (len(cells), sum(cell[4] for cell in cells))


@pytest.mark.parametrize("form", FORMATS)
def test_a_large_export_is_sent_in_pieces(tmp_path: Path, form: str) -> None:
    rows = 5 * BATCH_ROWS
    cells = {"query": [f"query {number}" for number in range(rows)], "item": ["i"] * rows, "position": [0] * rows}
    table = pa.table({**cells, "impressions": [2] * rows, "clicks": [1] * rows})
    files = [tmp_path / "0", tmp_path / "1"]
    for file in files:
        with pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    folder = tmp_path / "work"
    folder.mkdir()
    chunks = list(_sum_parts(files, EXPORTS[0].total, folder, FORMATS[form].writer))
    whole = b"".join(chunks)
    summed = pa.ipc.open_stream(whole).read_all() if form == "arrow" else pq.read_table(io.BytesIO(whole))
    assert summed.num_rows == rows and set(summed["impressions"].to_pylist()) == {4}
    assert len(chunks) > 4 and max(map(len, chunks)) < len(whole) / 2


def test_an_export_leaves_no_file_behind(group: Group) -> None:  # noqa: F811
    for _, settings in group:
        read(settings, "windows.arrow")
        folder = settings.data.dir / "run" / "exports" / settings.worker.name
        group[0][0].child.wait_until(lambda folder=folder: not list(folder.iterdir()), 20, "removed")  # type: ignore[misc]
