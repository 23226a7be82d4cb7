"""Exports each mature UTC day of a shard to the lake: Parquet files in a hive-partitioned folder, for training and other readers.

A day is mature when its clicks have arrived: the shard's latest event is past the day's end by the measured click-delay p99, or
by a minimum. A later change makes the day dirty, and it is written again over the old file, so that a reader sees one or the
other. Rows are read in one snapshot, while counting goes on; `streams.lake.files` writes the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import duckdb
import pyarrow as pa

from streams.counting import retention
from streams.events.rules import DAY_US
from streams.lake.files import Lake, LakeSettings, put_file, remove_file
from streams.lake.reader import SCHEMAS
from streams.store.shard import Shard

IMPRESSIONS = """
WITH labels AS (
    SELECT key, impression_id, position, min(ts_us) AS click_ts
    FROM clicks
    WHERE reason IS NULL
        AND key IN (SELECT key FROM impressions WHERE day = $day AND ts_us >= $low_us AND ts_us < $high_us)
    GROUP BY key, impression_id, position
),
clicked AS (
    SELECT key, impression_id, map_from_entries(list((position, click_ts))) AS times FROM labels GROUP BY key, impression_id
),
shown AS (
    SELECT i.*, list_transform(range(len(items)), lambda p: times[p] + greatest(ts_us - times[p], 0)) AS click_ts_us
    FROM impressions i LEFT JOIN clicked USING (key, impression_id)
    WHERE day = $day AND ts_us >= $low_us AND ts_us < $high_us
)
SELECT impression_id, event_id, ts_us, session_id, user_id, query, query_norm, task, items,
    list_transform(click_ts_us, lambda t: t IS NOT NULL) AS clicked, click_ts_us, release, predicted, logprob, decoding, extra
FROM shown ORDER BY ts_us, event_id
"""
QUERIES = """
SELECT event_id, ts_us, session_id, user_id, query, query_norm, source FROM queries
WHERE day = $day AND ts_us >= $low_us AND ts_us < $high_us ORDER BY ts_us, event_id
"""
COOCCURRENCE = """
SELECT query, next_query, sum(count)::BIGINT AS count FROM pair_counts WHERE day = $day
GROUP BY ALL HAVING sum(count) <> 0 ORDER BY ALL
"""
LATEST = "SELECT latest_us FROM state"
DELAY_P99 = "SELECT quantile_disc(delay_us, 0.99) AS p99 FROM clicks WHERE reason IS NULL"

TABLES = {"impressions": IMPRESSIONS, "queries": QUERIES, "cooccurrence": COOCCURRENCE}
GROUP_ROWS = 25_000
"""Rows of a row group, and about as many are sorted at a time: a sort takes several times their memory."""
SAMPLE_ROWS = 2_000
ROWS = {kind: f"SELECT count(*) FROM {kind} WHERE day = $day" for kind in ("impressions", "queries")}
SAMPLES = {
    kind: f"""
SELECT ts_us FROM (
    SELECT ts_us FROM (SELECT ts_us FROM {kind} WHERE day = $day) USING SAMPLE reservoir({SAMPLE_ROWS} ROWS) REPEATABLE (1)
)
ORDER BY ts_us
"""
    for kind in ROWS
}


def click_delay_p99_us(con: duckdb.DuckDBPyConnection) -> int:
    """Return the 99th percentile of a shard's click delays after the impression, in microseconds; 0 without clicks."""
    return int(con.execute(DELAY_P99).fetchall()[0][0] or 0)


def find_mature(con: duckdb.DuckDBPyConnection, settings: LakeSettings) -> list[date]:
    """Return a shard's days that are mature and changed since they were exported."""
    latest_us = con.execute(LATEST).fetchall()[0][0]
    if latest_us is None:
        return []

    def past(wait_us: int) -> list[date]:
        return [day for day in retention.read_dirty(con) if latest_us >= retention.to_us(day) + DAY_US + wait_us]

    candidates = past(round(settings.maturity_floor_s * 1_000_000))
    return [day for day in past(click_delay_p99_us(con)) if day in candidates] if candidates else []


def mature_days(shard: Shard, settings: LakeSettings) -> list[date]:
    """Return the shard's days that are mature and changed since they were exported."""
    shard.write()
    with shard.reader() as con:
        return find_mature(con, settings)


def export_mature(shard: Shard, partition: int, lake: Lake, settings: LakeSettings) -> list[date]:
    """Export the shard's mature days that are new or changed, and return them. Call it from the thread that applies."""
    exported = mature_days(shard, settings)
    for day in exported:
        with shard.reader() as con:
            con.execute("BEGIN TRANSACTION READ ONLY")
            export_day(con, lake, partition, day)
        shard.mark_exported(day)
    return exported


def export_day(con: duckdb.DuckDBPyConnection, lake: Lake, partition: int, day: date) -> dict[str, int]:
    """Write the three files of a day and return their numbers of rows; after a crash between them the day is written again.

    `con` must be in a transaction, so that the three files agree. DuckDB's limit bounds the memory, not the size of the day.
    Raises OSError when the lake cannot be written.
    """
    return {kind: _export(con, lake, partition, day, kind) for kind in TABLES}


def _export(con: duckdb.DuckDBPyConnection, lake: Lake, partition: int, day: date, kind: str) -> int:
    batches = (batch for batch in _read_day(con, day, kind) if batch.num_rows)
    first = next(batches, None)
    if first is None:
        remove_file(lake, kind, day, partition)
        return 0
    rows = [0]
    put_file(lake, kind, day, partition, partial(_write, kind, first, batches, rows))
    return rows[0]


def _read_day(con: duckdb.DuckDBPyConnection, day: date, kind: str) -> Iterator[pa.RecordBatch]:
    """Yield a day's rows in order; they are sorted in slices of the day."""
    if kind not in ROWS:
        yield from con.sql(TABLES[kind], params={"day": day}).to_arrow_reader(GROUP_ROWS)
        return
    for low_us, high_us in pairwise(_split_day(con, day, kind)):
        params = {"day": day, "low_us": low_us, "high_us": high_us}
        yield from con.sql(TABLES[kind], params=params).to_arrow_reader(GROUP_ROWS)


def _split_day(con: duckdb.DuckDBPyConnection, day: date, kind: str) -> list[int]:
    """Return event times from a day's start to its end, with about GROUP_ROWS rows between one and the next."""
    began_us = retention.to_us(day)
    slices = -(-con.execute(ROWS[kind], {"day": day}).fetchall()[0][0] // GROUP_ROWS)
    sample = [ts_us for (ts_us,) in con.execute(SAMPLES[kind], {"day": day}).fetchall()] if slices > 1 else []
    inner = {sample[len(sample) * number // slices] for number in range(1, slices)}
    return sorted({began_us, *inner, began_us + DAY_US})


def _write(kind: str, first: pa.RecordBatch, rest: Iterator[pa.RecordBatch], rows: list[int], path: Path) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, SCHEMAS[kind], compression="zstd") as writer:
        for batch in chain([first], rest):
            writer.write_table(pa.Table.from_batches([batch]).cast(SCHEMAS[kind]))
            rows[0] += batch.num_rows
