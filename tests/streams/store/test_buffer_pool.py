"""The buffer pool is trimmed between batches, to a higher limit during a read, and the read goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from streams.store import buffer_pool
from streams.store.buffer_pool import BufferPool

ROWS = "CREATE TABLE numbers AS SELECT i, hash(i) AS key FROM range(1_000_000) t(i)"
READ = "SELECT sum(key) FROM numbers"


@pytest.fixture
def con(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(str(tmp_path / "file.duckdb"), config={"threads": 1}) as opened:
        opened.execute(ROWS)
        opened.execute("CHECKPOINT")
        opened.execute(READ)
        yield opened


def used_bytes(con: duckdb.DuckDBPyConnection) -> int:
    return int(con.execute("SELECT sum(memory_usage_bytes) FROM duckdb_memory()").fetchall()[0][0])


def limit(con: duckdb.DuckDBPyConnection) -> str:
    return str(con.execute("SELECT current_setting('memory_limit')").fetchall()[0][0])


def test_a_full_pool_is_trimmed(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_pool, "KEPT", "2MiB")
    monkeypatch.setattr(buffer_pool, "FULL_BYTES", 2 * 2**20)
    assert used_bytes(con) > 8_000_000
    BufferPool(con).trim()
    assert used_bytes(con) <= 2 * 2**20
    assert limit(con) == "488.2 MiB"
    assert con.execute("SELECT count(DISTINCT i) FROM numbers").fetchall() == [(1_000_000,)]


def test_a_pool_that_is_not_full_is_not_trimmed(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_pool, "KEPT", "2MiB")
    used = used_bytes(con)
    monkeypatch.setattr(buffer_pool, "FULL_BYTES", used)
    BufferPool(con).trim()
    assert used_bytes(con) == used
    monkeypatch.setattr(buffer_pool, "FULL_BYTES", used - 1)
    BufferPool(con).trim()
    assert used_bytes(con) <= 2 * 2**20


def test_more_is_kept_during_a_read(con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffer_pool, "KEPT", "2MiB")
    monkeypatch.setattr(buffer_pool, "FULL_BYTES", 2 * 2**20)
    monkeypatch.setattr(buffer_pool, "KEPT_READING", ("8MiB", "200MiB"))
    pool = BufferPool(con)
    with pool.reading():
        with pool.reading():
            pass
        pool.trim()
        assert 2 * 2**20 < used_bytes(con) <= 8 * 2**20
        assert limit(con) == "488.2 MiB"
    pool.trim()
    assert used_bytes(con) <= 2 * 2**20


@pytest.mark.parametrize("kept", [("1KiB",), ("1KiB", "2MiB"), ("16MiB", "64MiB")])
def test_a_sort_returns_every_row_however_the_pool_is_trimmed_meanwhile(
    con: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch, kept: tuple[str, ...]
) -> None:
    monkeypatch.setattr(buffer_pool, "FULL_BYTES", 0)
    monkeypatch.setattr(buffer_pool, "KEPT_READING", kept)
    pool = BufferPool(con)
    with pool.reading():
        rows = con.cursor().execute("SELECT i FROM numbers ORDER BY key")
        first = rows.fetchone()
        pool.trim()
        assert limit(con) == "488.2 MiB"
        assert first is not None and len(rows.fetchall()) == 999_999
