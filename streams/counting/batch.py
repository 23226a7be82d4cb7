"""Batches: the accepted events of one partition as tables in log order, and the rejects among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streams.events.line_spans import Flags, Int64s, Spans
from streams.events.schema import Reject

Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Batch:
    """The events to count, as tables, and the rejects.

    The tables have the columns of `streams.events.columns.Columns`, and `seq`, `arrival_us` (0 if nothing expires) and `clock_us`
    of `streams.counting.acceptance`. `reject_seq` and `reject_arrival_us` are the same for the rejects. `latest_us` is the
    shard's time at the end of the batch, None if there was no event yet.
    """

    queries: pa.Table
    impressions: pa.Table
    clicks: pa.Table
    texts: Spans
    rejects: list[Reject]
    reject_seq: Int64s
    reject_arrival_us: Int64s
    latest_us: int | None

    def __len__(self) -> int:
        return len(self.queries) + len(self.impressions) + len(self.clicks) + len(self.rejects)

    @property
    def tables(self) -> tuple[pa.Table, pa.Table, pa.Table]:
        return self.queries, self.impressions, self.clicks


class MustSplit(Exception):
    """Part `number` of a batch must be split into `parts` (see `deduplication.find_split_points`)."""

    def __init__(self, number: int, parts: list[Batch]) -> None:
        super().__init__(number)
        self.number = number
        self.parts = parts


def split_values(values: npt.NDArray[Value], tables: Iterable[pa.Table]) -> list[npt.NDArray[Value]]:
    """Split one value for each row, table after table, into an array for each table."""
    ends = accumulate(map(len, tables), initial=0)
    return [values[low:high] for low, high in pairwise(ends)]


def split_batch(batch: Batch, starts: Sequence[int], latest_us: int | None) -> list[Batch]:
    """Split a batch at these values of `seq`, each the start of a part; `latest_us` is the shard's time before the batch."""
    parts = []
    for low, high in zip([-1, *starts], [*starts, None], strict=True):
        tables = [t.filter(pa.array(_between(to_numbers(t, "seq"), low, high))) for t in batch.tables]
        chosen = _between(batch.reject_seq, low, high)
        rejects = [reject for reject, is_in in zip(batch.rejects, chosen, strict=True) if is_in]
        times = [latest_us, *(pc.max(t["clock_us"]).as_py() for t in tables)]
        if high is None:
            times.append(batch.latest_us)  # an erased event may have been the latest one
        latest_us = max((t for t in times if t is not None), default=None)
        of_rejects = rejects, batch.reject_seq[chosen], batch.reject_arrival_us[chosen]
        parts.append(Batch(tables[0], tables[1], tables[2], batch.texts, *of_rejects, latest_us))
    return parts


def _between(seq: Int64s, low: int, high: int | None) -> Flags:
    return (seq >= low) if high is None else (seq >= low) & (seq < high)


def to_numbers(table: pa.Table, name: str) -> Int64s:
    """Return a column of whole numbers, without a copy where it is one chunk."""
    return table[name].to_numpy()  # type: ignore[no-any-return]
