"""The lake exporter: it writes mature days to the lake while the shards go on counting.

A day's rows are read in one snapshot and written on a separate thread, however long the lake takes. The shard's own thread only
says how often the day had changed before, and marks it afterwards. A day that changed in between is exported again later. A shard
is not released while one of its files is being written, so an older file never replaces one of the shard's next holder.
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


class LakeExporter:
    """Exports the held shards' mature days. Calls of `export` must not overlap."""

    def __init__(
        self, shards: HeldShards, lake: Lake, settings: LakeSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shards = shards
        self._lake = lake
        self._settings = settings
        self._clock = clock
        self._exported: dict[tuple[int, date], float] = {}
        self._retry_s = RETRY_S
        self._retry_at = 0.0

    async def export(self) -> list[tuple[int, date]]:
        """Write the mature days that are due and return the (partition, day) of each.

        While the lake fails, the pauses between attempts grow from RETRY_S to MAX_RETRY_S seconds.
        """
        done: list[tuple[int, date]] = []
        if self._clock() < self._retry_at:
            return done
        for partition in self._shards.totals():
            find = partial(find_mature, settings=self._settings)
            found = await self._shards.export_readers.read([partition], find, fresh=False)
            for day in found.get(partition, []):
                if self._is_due(partition, day) and await self._try_export(partition, day):
                    done.append((partition, day))
        return done

    def _is_due(self, partition: int, day: date) -> bool:
        """Return whether a day may be exported now: late clicks change it often, so not within `reexport_s` of the last time."""
        last = self._exported.get((partition, day))
        return self._clock() >= self._retry_at and (last is None or self._clock() - last >= self._settings.reexport_s)

    async def _try_export(self, partition: int, day: date) -> bool:
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
            self._retry_at = self._clock() + self._retry_s
            self._retry_s = min(2 * self._retry_s, MAX_RETRY_S)
            return False

    async def _export(self, partition: int, day: date) -> bool:
        before = await self._shards.call(partition, lambda shard: (shard, shard.changes(day)))
        if before is None:
            return False
        began = self._clock()
        written = await self._shards.export_readers.read([partition], partial(self._write, partition, day))
        rows = written.get(partition)
        if rows is None:
            return False
        self._retry_s = RETRY_S
        is_current = await self._shards.call(partition, partial(_mark_exported, day, *before))
        if is_current is not None:
            self._exported[partition, day] = self._clock()
        log.info(
            "event=day_exported partition=%d day=%s rows=%d seconds=%.3f as_it_stands=%s",
            partition,
            day,
            sum(rows.values()),
            self._clock() - began,
            bool(is_current),
        )
        return bool(is_current)

    def _write(self, partition: int, day: date, con: duckdb.DuckDBPyConnection) -> dict[str, int]:
        return export_day(con, self._lake, partition, day)


def _mark_exported(day: date, shard: Shard, changes: int, held: Shard) -> bool | None:
    """Mark a day exported, and return whether it is unchanged since, so that the lake holds its current rows.

    None, and no mark, when the shard was released and opened again meanwhile, since another worker may have changed it.
    """
    return shard.mark_exported(day, changes) if held is shard else None
