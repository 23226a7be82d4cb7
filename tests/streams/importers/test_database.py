"""A mapping reads its log and nothing else, writes nothing, changes no setting and loads no extension."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from streams.importers.database import SETTINGS, bind_mapping, open_database

LOG = "a,b\n1,2\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "it's [a] log.csv").write_text(LOG)
    (tmp_path / "other.csv").write_text("secret\nhunter2\n")
    return tmp_path / "it's [a] log.csv"


@pytest.fixture
def con(log: Path, tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with open_database(tmp_path / "spill", [log]) as database:
        database.execute("SET VARIABLE log = $1", [str(log)])
        database.execute("CREATE VIEW log AS SELECT 1 AS a")
        yield database


def quoted(path: Path, quotes: int = 2) -> str:
    """A path as it is written within a string in a string, by the number of quotes that mean one."""
    return str(path).replace("'", "'" * quotes)


WRITE = "WITH x AS (COPY (SELECT 1) TO ''{log2}'' (USE_TMP_FILE false)) SELECT 1 AS a"

OUTSIDE = [
    "FROM read_csv('{folder}/other.csv')",
    "FROM '{folder}/other.csv'",
    "FROM read_text('{folder}/other.csv')",
    "FROM read_blob('/etc/passwd')",
    "FROM read_json('/etc/passwd')",
    "FROM read_parquet('/etc/passwd')",
    "FROM parquet_metadata('/etc/passwd')",
    "FROM sniff_csv('/etc/passwd')",
    "FROM glob('/etc/*')",
    "FROM glob('{folder}/*')",
    "FROM read_csv('/proc/self/environ')",
    "FROM read_csv('/dev/stdin')",
    "FROM read_csv('http://127.0.0.1:1/x.csv')",
    "FROM 'https://example.com/x.parquet'",
    "FROM read_text('s3://bucket/x')",
    "FROM query('FROM read_text(''/etc/passwd'')')",
    "FROM json_execute_serialized_sql(json_serialize_sql('FROM read_text(''/etc/passwd'')'))",
    "FROM duckdb_secrets()",
    "FROM duckdb_extensions()",
]


@pytest.mark.parametrize("sql", OUTSIDE)
def test_no_other_file_or_address_is_read(sql: str, con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    with pytest.raises(duckdb.Error, match=r"disabled by configuration|may not call"):
        bind_mapping(con, sql.format(folder=tmp_path)).fetchall()


@pytest.mark.parametrize("sql", ["SELECT getenv('HOME')", "FROM os", "FROM LOG_OF_PYTHON"])
def test_neither_the_environment_nor_variables_of_python_are_read(sql: str, con: duckdb.DuckDBPyConnection) -> None:
    LOG_OF_PYTHON = con.sql("SELECT 1")  # noqa: F841
    with pytest.raises(duckdb.CatalogException, match="does not exist"):
        bind_mapping(con, sql).fetchall()


@pytest.mark.parametrize(
    "sql",
    [
        "WITH x AS (COPY (SELECT 'gone') TO '{log}' (USE_TMP_FILE false)) SELECT 1 AS a",
        "WITH x AS (COPY log TO '{folder}/out.csv') FROM x",
        "WITH x AS (INSERT INTO log VALUES (1) RETURNING *) FROM x",
        "FROM query('COPY log TO ''{folder}/out.csv''')",
        f"FROM json_execute_serialized_sql(json_serialize_sql('{WRITE}'))",
        "FROM query('SELECT 1 AS a')",
        "SELECT 1 AS a WHERE 1 IN (FROM system.main.Json_Execute_Serialized_Sql(json_serialize_sql('SELECT 1')))",
        "FROM query_table('log')",
        "FROM enable_logging(storage_path = '{folder}/out.csv')",
        "FROM enable_profiling(save_location = '{folder}/out.csv')",
    ],
)
def test_nothing_is_written(sql: str, con: duckdb.DuckDBPyConnection, log: Path, tmp_path: Path) -> None:
    with pytest.raises(duckdb.Error):
        bind_mapping(con, sql.format(folder=tmp_path, log=quoted(log), log2=quoted(log, 4))).fetchall()
    assert log.read_text() == LOG
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "SET enable_external_access = true",
        "SET allowed_paths = ['/etc/passwd']",
        "SET memory_limit = '99GB'",
        "SET autoload_known_extensions = true",
        "RESET lock_configuration",
        "INSTALL httpfs",
        "LOAD httpfs",
        "LOAD '/tmp/x.duckdb_extension'",
        "ATTACH '/tmp/x.duckdb'",
        "COPY log TO '/tmp/x.csv'",
        "EXPORT DATABASE '/tmp/x'",
    ],
)
def test_even_a_statement_that_is_no_select_could_do_nothing(sql: str, con: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(duckdb.Error, match=r"disabled|locked"):
        con.execute(sql)


def test_the_log_itself_is_read_whatever_its_name(con: duckdb.DuckDBPyConnection, log: Path) -> None:
    quoted = str(log).replace("'", "''")
    assert bind_mapping(con, f"FROM read_text('{quoted}')").fetchall()[0][1] == LOG


def test_memory_is_bounded_and_times_are_utc(con: duckdb.DuckDBPyConnection) -> None:
    settings = con.execute("SELECT current_setting('memory_limit'), current_setting('TimeZone')").fetchall()
    assert settings == [("953.6 MiB", "UTC")]  # 1 GB


def test_what_outgrows_the_memory_is_spilled_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "memory_limit", "'200MB'")
    with open_database(tmp_path / "spill", []) as database:
        rows = database.sql("SELECT range, repeat(md5(range::VARCHAR), 4) AS text FROM range(2_000_000) ORDER BY range DESC")
        reader = rows.to_arrow_reader(4096)
        reader.read_next_batch()
        assert sum(one.stat().st_size for one in (tmp_path / "spill").iterdir()) > 20_000_000
        reader.close()
    assert not (tmp_path / "spill").exists()
