"""Exporting: mature days go to the lake beside the counting.

A day's rows are read in one snapshot and written on a thread of their own, however long the lake takes. The shard's own thread is
asked only how often the day had changed before, and to mark it afterwards; a day that changed in between stays to be exported
again, though the lake holds it. A shard is not given up while one of its files is on the way, so an older file never lands on a
newer holder's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import date
from functools import partial

import duckdb

from streams.lake.files import Lake, LakeSettings
from streams.store.held_shards import HeldShards
from streams.store.lake_export import export_day, find_mature
from streams.store.shard import Shard

log = logging.getLogger(__name__)

RETRY_S = 5.0
MAX_RETRY_S = 300.0


class Exporter:
    """Exports the held shards' mature days. One `export` runs at a time."""

    def __init__(
        self, shards: HeldShards, lake: Lake, settings: LakeSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shards = shards
        self._lake = lake
        self._settings = settings
        self._clock = clock
        self._exported: dict[tuple[int, date], float] = {}
        self._retry_s = RETRY_S
        self._not_before = 0.0

    async def export(self) -> list[tuple[int, date]]:
        """Write what is mature and return (partition, day) of each; while the lake is away, try less and less often."""
        done: list[tuple[int, date]] = []
        if self._clock() < self._not_before:
            return done
        for partition in self._shards.totals():
            find = partial(find_mature, settings=self._settings)
            found = await self._shards.exports.read([partition], find, fresh=False)
            for day in found.get(partition, []):
                if self._is_due(partition, day) and await self._try(partition, day):
                    done.append((partition, day))
        return done

    def _is_due(self, partition: int, day: date) -> bool:
        """Whether a day was not exported a moment ago: late clicks change it again and again."""
        last = self._exported.get((partition, day))
        return self._clock() >= self._not_before and (last is None or self._clock() - last >= self._settings.reexport_s)

    async def _try(self, partition: int, day: date) -> bool:
        try:
            return await self._export(partition, day)
        except OSError as error:
            log.error(
                "event=export_failed partition=%d day=%s lake=%s retry_s=%.0f error=%r",
                partition,
                day,
                self._lake.url,
                self._retry_s,
                str(error),
            )
            self._not_before = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
            return False

    async def _export(self, partition: int, day: date) -> bool:
        stood = await self._shards.call(partition, lambda shard: (shard, shard.changes(day)))
        if stood is None:
            return False
        began = self._clock()
        written = await self._shards.exports.read([partition], partial(self._write, partition, day))
        rows = written.get(partition)
        if rows is None:
            return False
        self._retry_s = RETRY_S
        holds = await self._shards.call(partition, partial(_mark, day, *stood))
        if holds is not None:
            self._exported[partition, day] = self._clock()
        log.info(
            "event=day_exported partition=%d day=%s rows=%d seconds=%.3f as_it_stands=%s",
            partition,
            day,
            sum(rows.values()),
            self._clock() - began,
            bool(holds),
        )
        return bool(holds)

    def _write(self, partition: int, day: date, con: duckdb.DuckDBPyConnection) -> dict[str, int]:
        return export_day(con, self._lake, partition, day)


def _mark(day: date, shard: Shard, changes: int, held: Shard) -> bool | None:
    """Mark a day exported, and say whether the lake holds it as it stands.

    None where the shard went away and came back meanwhile, since somebody else may have changed it: it is not marked then.
    """
    return shard.mark_exported(day, changes) if held is shard else None
