"""The lake: each mature UTC day as Parquet files in a hive-partitioned folder, for training and for whoever reads Parquet.

    lake/{impressions,queries,cooccurrence}/day=YYYY-MM-DD/shard-<partition>.parquet

A day is mature when its clicks have come: the shard's latest event is past the day's end by the measured click-delay p99, or by
the floor. A later change makes the day dirty and it is written again, beside the old file and moved over it, so that a reader
sees one or the other.
"""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, Field

from streams.cooccurrence import sum_cooccurrence
from streams.rules import DAY_US
from streams.store import Shard

IMPRESSIONS = """
WITH labels AS (
    SELECT impression_id, position, min(ts_us) AS click_ts
    FROM clicks
    WHERE reason IS NULL AND key IN (SELECT key FROM impressions WHERE day = $day)
    GROUP BY impression_id, position
),
clicked AS (SELECT impression_id, map_from_entries(list((position, click_ts))) AS times FROM labels GROUP BY impression_id),
shown AS (
    SELECT i.*, list_transform(range(len(items)), lambda p: times[p]) AS click_ts_us
    FROM impressions i LEFT JOIN clicked USING (impression_id)
    WHERE day = $day
)
SELECT impression_id, event_id, ts_us, session_id, user_id, query, query_norm, task, items,
    list_transform(click_ts_us, lambda t: t IS NOT NULL) AS clicked, click_ts_us, release, predicted, logprob, decoding, extra
FROM shown ORDER BY ts_us, event_id
"""
QUERIES = """
SELECT event_id, ts_us, session_id, user_id, query, query_norm, source FROM queries WHERE day = $day ORDER BY ts_us, event_id
"""
COOCCURRENCE = """
SELECT query, next_query, sum(count)::BIGINT AS count FROM cooccurrence_deltas WHERE day = $day
GROUP BY ALL HAVING sum(count) <> 0 ORDER BY ALL
"""
DELAY_P99 = "SELECT quantile_disc(delay_us, 0.99) AS p99 FROM clicks WHERE reason IS NULL"

SCHEMAS = {
    "impressions": pa.schema(
        [
            ("impression_id", pa.string()),
            ("event_id", pa.string()),
            ("ts_us", pa.int64()),
            ("session_id", pa.string()),
            ("user_id", pa.string()),
            ("query", pa.string()),
            ("query_norm", pa.string()),
            ("task", pa.string()),
            ("items", pa.list_(pa.string())),
            ("clicked", pa.list_(pa.bool_())),
            ("click_ts_us", pa.list_(pa.int64())),
            ("release", pa.string()),
            ("predicted", pa.list_(pa.float64())),
            ("logprob", pa.float64()),
            ("decoding", pa.string()),
            ("extra", pa.string()),
        ]
    ),
    "queries": pa.schema(
        [
            ("event_id", pa.string()),
            ("ts_us", pa.int64()),
            ("session_id", pa.string()),
            ("user_id", pa.string()),
            ("query", pa.string()),
            ("query_norm", pa.string()),
            ("source", pa.string()),
        ]
    ),
    "cooccurrence": pa.schema([("query", pa.string()), ("next_query", pa.string()), ("count", pa.int64())]),
}
"""Columns of the day files; `ts_us` and `click_ts_us` are microseconds since the epoch, `decoding` and `extra` JSON."""

TABLES = {"impressions": IMPRESSIONS, "queries": QUERIES, "cooccurrence": COOCCURRENCE}
EPOCH = date(1970, 1, 1)


class LakeSettings(BaseModel, frozen=True, extra="forbid"):
    """When a day is exported (section `lake`)."""

    maturity_floor_s: float = Field(default=3600.0, ge=0, description="seconds past a day's end before it is exported, at least")


def click_delay_p99_us(shard: Shard) -> int:
    """Return the 99th percentile of the shard's click delays (click after impression), microseconds; 0 without clicks."""
    return int(shard.read(DELAY_P99)["p99"][0].as_py() or 0)


def mature_days(shard: Shard, settings: LakeSettings) -> list[date]:
    """Return the shard's days that are mature and that the lake does not hold as they are."""
    latest_us = shard.totals().latest_us
    dirty = shard.dirty_days()
    if latest_us is None or not dirty:
        return []
    wait_us = max(click_delay_p99_us(shard), round(settings.maturity_floor_s * 1_000_000))
    return [day for day in dirty if latest_us >= ((day - EPOCH).days + 1) * DAY_US + wait_us]


def export_mature(shard: Shard, partition: int, lake_dir: Path, settings: LakeSettings) -> list[date]:
    """Write the shard's mature days that are new or changed, and return them. Call it from the thread that applies."""
    exported = mature_days(shard, settings)
    for day in exported:
        export_day(shard, partition, lake_dir, day)
    return exported


def export_day(shard: Shard, partition: int, lake_dir: Path, day: date) -> None:
    """Write one day's three files; a crash between them leaves the day to be written again."""
    for kind, sql in TABLES.items():
        rows = shard.read(sql, {"day": day}).cast(SCHEMAS[kind])
        path = lake_dir / kind / f"day={day.isoformat()}" / f"shard-{partition}.parquet"
        if len(rows):
            _write(path, rows)
        else:
            path.unlink(missing_ok=True)
    shard.mark_exported(day)


def read_impressions(lake_dir: Path, first: date, last: date) -> pa.Table:
    """Return the impressions of the days first to last, both included, by (ts_us, event_id): columns of SCHEMAS and `day`."""
    return _read(lake_dir, "impressions", first, last).sort_by([("ts_us", "ascending"), ("event_id", "ascending")])


def read_queries(lake_dir: Path, first: date, last: date) -> pa.Table:
    """Return the queries of the days first to last, both included, by (ts_us, event_id): columns of SCHEMAS and `day`."""
    return _read(lake_dir, "queries", first, last).sort_by([("ts_us", "ascending"), ("event_id", "ascending")])


def read_cooccurrence(lake_dir: Path, first: date, last: date) -> pa.Table:
    """Return query, next_query, count summed over shards and the days first to last, both included, sorted."""
    return sum_cooccurrence([_read(lake_dir, "cooccurrence", first, last).drop_columns(["day"])])


def days(lake_dir: Path) -> list[date]:
    """Return the days of which the lake holds anything, sorted."""
    return sorted({_day_of(path) for path in lake_dir.glob("*/day=*/shard-*.parquet")})


def _read(lake_dir: Path, kind: str, first: date, last: date) -> pa.Table:
    schema = SCHEMAS[kind].append(pa.field("day", pa.date32()))
    files = [str(path) for path in sorted((lake_dir / kind).glob("day=*/shard-*.parquet")) if first <= _day_of(path) <= last]
    if not files:
        return schema.empty_table()
    import pyarrow.dataset as ds  # brings pandas along: a second that only readers of the lake should pay

    hive = ds.partitioning(pa.schema([("day", pa.date32())]), flavor="hive")
    return ds.dataset(files, schema=schema, format="parquet", partitioning=hive).to_table()


def _day_of(path: Path) -> date:
    return date.fromisoformat(path.parent.name.removeprefix("day="))


def _write(path: Path, rows: pa.Table) -> None:
    """Write rows beside `path`, make them durable, and move them over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.writing")
    import pyarrow.parquet as pq

    pq.write_table(rows, beside, compression="zstd")
    _sync(beside)
    beside.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
