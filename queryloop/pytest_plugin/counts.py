"""The counts of a test's worker, read over its HTTP and summed over its shards."""

from __future__ import annotations

from datetime import date, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from queryloop.pytest_plugin.rows import Window
from streams.api.click_rates import compute_coec, fit_prior, sum_rows, window_row
from streams.api.client import get
from streams.api.snapshot import Counts, read_counts
from streams.counting.windows import sum_windows
from streams.events.rules import WINDOW_DAYS
from streams.worker.settings import StreamsSettings


def read_all(settings: StreamsSettings) -> list[Counts]:
    """Return what each shard has counted. Raises HttpError when the worker does not answer."""
    shards = f"{settings.worker.local_url}/v1/shards"
    return [read_counts(get(f"{shards}/{n}/counts", settings.worker.key)) for n in range(settings.kafka.partitions)]


def rate_windows(shards: list[Counts], as_of: date) -> list[Window]:
    """Return the windows as of a day, with their rates, sorted by query, item and position."""
    table = sum_windows(_select_days(counts.windows, as_of) for counts in shards)
    rows = list(zip(*(column.to_pylist() for column in table.columns), strict=True))
    cells, positions = sum_rows([rows]), sum_rows([[row[2:] for row in rows]])
    prior, coec = fit_prior(table), compute_coec(cells, positions)
    return [Window(**window_row(cell, sums, prior, coec)) for cell, sums in cells.items()]


def _select_days(windows: pa.Table, as_of: date) -> pa.Table:
    """Return the cells of the 14 days before `as_of`, without their day."""
    first = as_of - timedelta(days=WINDOW_DAYS)
    inside = pc.and_(pc.greater_equal(windows["day"], pa.scalar(first)), pc.less(windows["day"], pa.scalar(as_of)))
    return windows.filter(inside).drop_columns(["day"])
