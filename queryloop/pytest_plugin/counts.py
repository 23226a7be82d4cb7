"""The counts of a test's worker, read over its HTTP and summed over its shards."""

from __future__ import annotations

from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from queryloop.pytest_plugin.rows import Window
from queryloop.up.worker_process import fetch_from_worker
from streams.api.snapshot import Counts, read_counts
from streams.counting.windows import coec, raw_ctr, smoothed_ctr, sum_windows
from streams.events.rules import WINDOW_DAYS
from streams.worker.settings import StreamsSettings


def read_all(settings: StreamsSettings) -> list[Counts]:
    """Return what each shard has counted. Raises ProcessError when the worker does not answer."""
    partitions = range(settings.kafka.partitions)
    return [read_counts(fetch_from_worker(settings, f"/v1/shards/{partition}/counts")) for partition in partitions]


def rate_windows(shards: list[Counts], as_of: date) -> list[Window]:
    """Return the windows as of a day, with their rates, sorted by query, item and position."""
    table = sum_windows(_cut(counts.windows, as_of) for counts in shards)
    ratios = {(row["query_norm"], row["item_norm"]): row["coec"] for row in coec(table).to_pylist()}
    pairs = zip(raw_ctr(table).to_pylist(), smoothed_ctr(table).to_pylist(), strict=True)
    return [
        Window(
            query=raw["query_norm"],
            item=raw["item_norm"],
            position=raw["position"],
            impressions=raw["impressions"],
            clicks=raw["clicks"],
            raw_ctr=raw["ctr"],
            smoothed_ctr=smooth["ctr"],
            coec=ratios[raw["query_norm"], raw["item_norm"]],
        )
        for raw, smooth in pairs
    ]


def _cut(windows: pa.Table, as_of: date) -> pa.Table:
    """The 14 days before `as_of`; cells that were only ever taken back are none."""
    first = as_of - timedelta(days=WINDOW_DAYS)
    inside = pc.and_(pc.greater_equal(windows["day"], pa.scalar(first)), pc.less(windows["day"], pa.scalar(as_of)))
    return windows.filter(inside).drop_columns(["day"])
