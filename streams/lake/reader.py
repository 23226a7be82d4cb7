"""Reads impressions, queries and co-occurrence of a range of days from the lake, for training and other readers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

import duckdb
import pyarrow as pa

from streams.lake.files import Lake, list_files

SUM_COOCCURRENCE = """
SELECT query, next_query, sum(count)::BIGINT AS count FROM parts GROUP BY ALL HAVING sum(count) <> 0 ORDER BY ALL
"""

SESSION_FIELDS = [("session_id", pa.string()), ("user_id", pa.string()), ("query", pa.string()), ("query_norm", pa.string())]
EVENT_FIELDS = [("event_id", pa.string()), ("ts_us", pa.int64())]
SCHEMAS = {
    "impressions": pa.schema(
        [
            ("impression_id", pa.string()),
            *EVENT_FIELDS,
            *SESSION_FIELDS,
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
    "queries": pa.schema([*EVENT_FIELDS, *SESSION_FIELDS, ("source", pa.string())]),
    "cooccurrence": pa.schema([("query", pa.string()), ("next_query", pa.string()), ("count", pa.int64())]),
}
"""Columns of the day files; `ts_us` and `click_ts_us` are microseconds since the epoch, `decoding` and `extra` JSON."""


def read_impressions(lake: Lake, first: date, last: date, partition: int | None = None) -> pa.Table:
    """Return the impressions of the days first to last, both included, by (ts_us, event_id): columns of SCHEMAS and `day`.

    With a `partition` only those of its shard.
    """
    return _read(lake, "impressions", first, last, partition).sort_by([("ts_us", "ascending"), ("event_id", "ascending")])


def read_queries(lake: Lake, first: date, last: date, partition: int | None = None) -> pa.Table:
    """Return the queries of the days first to last, both included, by (ts_us, event_id): columns of SCHEMAS and `day`.

    With a `partition` only those of its shard.
    """
    return _read(lake, "queries", first, last, partition).sort_by([("ts_us", "ascending"), ("event_id", "ascending")])


def read_cooccurrence(lake: Lake, first: date, last: date) -> pa.Table:
    """Return query, next_query, count, summed over shards and the days first to last (both included), sorted."""
    return sum_cooccurrence([_read(lake, "cooccurrence", first, last).drop_columns(["day"])])


def days(lake: Lake) -> list[date]:
    """Return the days that have a file in the lake, sorted."""
    return sorted({file.day for kind in SCHEMAS for file in list_files(lake, kind)})


def _read(lake: Lake, kind: str, first: date, last: date, partition: int | None = None) -> pa.Table:
    schema = SCHEMAS[kind].append(pa.field("day", pa.date32()))
    files = [file.path for file in list_files(lake, kind) if first <= file.day <= last and partition in (None, file.partition)]
    if not files:
        return schema.empty_table()
    import pyarrow.dataset as ds  # imports pandas: a second that only readers of the lake should pay

    hive = ds.partitioning(pa.schema([("day", pa.date32())]), flavor="hive")
    return ds.dataset(files, filesystem=lake.files, schema=schema, format="parquet", partitioning=hive).to_table()


def sum_cooccurrence(parts: Iterable[pa.Table]) -> pa.Table:
    """Return the sum of several shards' co-occurrence tables, sorted."""
    with duckdb.connect(":memory:") as con:
        con.register("parts", pa.concat_tables(parts))
        return con.sql(SUM_COOCCURRENCE).to_arrow_table()
