"""The lake exporter: a slow or failing lake does not stop counting, and a day that changes meanwhile is exported again."""

from __future__ import annotations

import asyncio
import functools
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from queryloop.up.worker_process import WorkerProcess
from streams.brokers.broker import Broker
from streams.brokers.topics import create_topics
from streams.events.batch_decoder import decode_columns
from streams.lake.files import Lake, LakeSettings, open_lake
from streams.lake.reader import days, read_impressions
from streams.store.held_shards import HeldShards
from streams.store.shard import CountingRules, Shard
from streams.worker import lake_exporter
from streams.worker.lake_exporter import LakeExporter
from tests.streams.store.test_lake_export import DAY, MATURE, NOON
from tests.streams.worker.test_main import APPLIED_S, emit, good_events, make_settings, shards_of
from tests.support.lake_servers import s3_lake
from tests.support.logs import NOW, START, click, dirty_days, impression, query

SETTINGS = LakeSettings(reexport_s=0)
BAD_CLICK = {"impression_id": "i", "position": 7}


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def held(tmp_path: Path) -> AsyncIterator[HeldShards]:
    shards = HeldShards(tmp_path, CountingRules(), clock=lambda: NOW)
    await shards.assign({0: 0}, "t")
    try:
        yield shards
    finally:
        await asyncio.to_thread(shards.close)


async def count(shards: HeldShards, *lines: bytes) -> None:
    def apply(shard: Shard) -> None:
        first = (shard.position() or ("", 0))[1]
        records = [(first + number, line) for number, line in enumerate(lines)]
        shard.apply(decode_columns(records), topic_id="t", first_offset=first, next_offset=first + len(lines), now=NOW)

    await shards.call(0, apply)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.local(tmp_path / "lake")


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The lake's next file is only written when the second event is set; the first one says that it is being written."""
    begun, go = threading.Event(), threading.Event()
    real = lake_exporter.export_day

    def slow(*args: object) -> object:
        rows = real(*args)  # type: ignore[arg-type]
        begun.set()
        assert go.wait(30)
        return rows

    monkeypatch.setattr(lake_exporter, "export_day", slow)
    yield begun, go
    go.set()


def clicked(lake: Lake) -> list[list[bool]]:
    found: list[list[bool]] = read_impressions(lake, DAY, DAY)["clicked"].to_pylist()
    return found


@in_a_loop
async def test_a_mature_day_is_exported_once_and_again_when_a_repair_changes_it(tmp_path: Path, lake: Lake) -> None:
    async with held(tmp_path) as shards:
        exporter = LakeExporter(shards, lake, SETTINGS)
        await count(shards, impression("e1", NOON), click("e2", NOON + 1, **BAD_CLICK), MATURE)
        assert await exporter.export() == [(0, DAY)]
        assert await exporter.export() == []
        assert clicked(lake) == [[False, False]]
        assert shards.totals()[0].quarantined == {"position_out_of_range": 1}
        await count(shards, click("e2", NOON + 1, "i", 1))  # the same event, repaired
        assert shards.totals()[0].quarantined == {}
        assert await exporter.export() == [(0, DAY)]
        assert clicked(lake) == [[False, True]]


@asynccontextmanager
async def held_while_a_file_is_written(
    tmp_path: Path, lake: Lake, begun: threading.Event, settings: LakeSettings = SETTINGS
) -> AsyncIterator[tuple[HeldShards, LakeExporter, asyncio.Task[list[tuple[int, date]]]]]:
    """A shard with one impression on a mature day, and the export of that day, which has begun to write its file."""
    async with held(tmp_path) as shards:
        exporter = LakeExporter(shards, lake, settings)
        await count(shards, impression("e1", NOON), MATURE)
        export = asyncio.create_task(exporter.export())
        assert await asyncio.to_thread(begun.wait, 30)
        yield shards, exporter, export


@in_a_loop
async def test_counting_continues_while_a_file_is_written_and_a_changed_day_is_exported_again(
    tmp_path: Path, lake: Lake, gate: tuple[threading.Event, threading.Event]
) -> None:
    begun, go = gate
    async with held_while_a_file_is_written(tmp_path, lake, begun) as (shards, exporter, export):
        await count(shards, click("e2", NOON + 1))  # would wait for ever if the export held the shards' thread
        assert shards.totals()[0].counted == 3
        go.set()
        assert await export == []
        assert clicked(lake) == [[False, False]]
        assert shards.totals()[0].days_exported == [DAY]  # even though it has changed since
        assert await shards.call(0, dirty_days) == [DAY, date(2021, 3, 16)]
        assert await exporter.export() == [(0, DAY)]
        assert clicked(lake) == [[True, False]]
        assert shards.totals()[0].days_exported == [DAY]


@in_a_loop
async def test_a_shard_is_released_after_its_file_is_written_and_not_marked_once_it_is_reopened(
    tmp_path: Path, lake: Lake, gate: tuple[threading.Event, threading.Event]
) -> None:
    begun, go = gate
    seldom = LakeSettings(reexport_s=600)
    async with held_while_a_file_is_written(tmp_path, lake, begun, seldom) as (shards, exporter, export):
        release = asyncio.create_task(shards.release([0]))
        await asyncio.sleep(0)
        assert not release.done()
        go.set()
        await release
        await shards.assign({0: 0}, "t")
        assert await export == []
        assert shards.totals()[0].days_exported == []
        assert await exporter.export() == [(0, DAY)]


@in_a_loop
async def test_a_failing_lake_is_tried_again_after_growing_pauses(
    tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, tries = Clock(), []

    def fail(*args: object) -> None:
        tries.append(clock.now)
        raise OSError("no route to host")

    async with held(tmp_path) as shards:
        exporter = LakeExporter(shards, lake, SETTINGS, clock)
        await count(shards, impression("e1", NOON), impression("e2", NOON - 86_400, "j"), MATURE)
        with monkeypatch.context() as patch:
            patch.setattr(lake_exporter, "export_day", fail)
            for _ in range(60):
                assert await exporter.export() == []
                clock.now += 1
        assert [later - first for first, later in itertools.pairwise(tries)] == [5, 10, 20]
        clock.now += 1000
        assert await exporter.export() == [(0, date(2021, 3, 14)), (0, DAY)]
        assert days(lake) == [date(2021, 3, 14), DAY]


@in_a_loop
async def test_late_clicks_export_a_day_at_most_every_reexport_seconds(tmp_path: Path, lake: Lake) -> None:
    clock = Clock()
    async with held(tmp_path) as shards:
        exporter = LakeExporter(shards, lake, LakeSettings(reexport_s=600), clock)
        await count(shards, impression("e1", NOON), query("z", NOON + 2 * 86_400))
        assert await exporter.export() == [(0, DAY)]
        await count(shards, click("e2", NOON + 1))
        clock.now += 599
        assert await exporter.export() == []
        clock.now += 1
        assert await exporter.export() == [(0, DAY)]
        assert clicked(lake) == [[True, False]]


def test_a_worker_process_exports_its_days_to_a_bucket(
    broker: Broker, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_lake(monkeypatch) as bucket:
        made = make_settings(broker.bootstrap, unique, tmp_path)
        settings = made.model_copy(update={"lake": bucket.model_copy(update={"maturity_floor_s": 0})})
        create_topics(broker.bootstrap, settings.kafka)
        ends = [query(f"end{number}", START + 2 * 86_400, session_id=f"s{number}") for number in range(20)]
        emit(settings, [*good_events(0, 20), *ends])
        with WorkerProcess(settings, tmp_path / "worker.log") as worker:

            def exported() -> bool:
                shards = shards_of(settings).values()
                return sum(map(len, (shard["days_exported"] for shard in shards))) >= 2

            worker.child.wait_until(exported, APPLIED_S, "exported")
            worker.stop()
        lake = open_lake(tmp_path, settings.lake)
        first = days(lake)[0]
        assert len(read_impressions(lake, first, first)) == 20
        assert sum(map(sum, read_impressions(lake, first, first)["clicked"].to_pylist())) == 20
        assert not (tmp_path / "lake").exists()
