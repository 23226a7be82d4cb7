"""Our changes to Faust's transport: whole runs, seeks to the shards' offsets, no record from before a rebalance."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP

from streams.worker import app as agents
from streams.worker.fetches import FetchedRun
from streams.worker.settings import StreamsSettings
from streams.worker.transport import FETCH_MAX_WAIT_MS, Consumer, LogHole, LogTruncated, WorkerApp

ZERO, ONE = TP("events", 0), TP("events", 1)


def run(first: int, last: int, partition: int = 0) -> FetchedRun:
    return FetchedRun(partition, [(offset, b"{}") for offset in range(first, last + 1)], first, last + 1, 1000)


class Scripted(Consumer):
    """Our consumer with Kafka replaced: fetches are taken from `fetched`, seeks are recorded in `sought`."""

    fetched: list[dict[TP, FetchedRun]]
    sought: list[dict[TP, int]]

    def assignment(self) -> set[TP]:
        return {ZERO, ONE}

    def highwater(self, tp: TP) -> int:
        return 100

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        self.sought.append(dict(partitions))

    async def _wait_next_records(self, timeout: float) -> Any:
        return self.fetched.pop(0), {ZERO, ONE}


Scenario = Callable[[Scripted], Awaitable[None]]
RunScenario = Callable[[Scenario], None]


@pytest.fixture
def offsets() -> dict[TP, int]:
    """The next offsets of the shards; a test may change them."""
    return {ZERO: 10, ONE: 20}


@pytest.fixture
def lost() -> list[bool]:
    """Whether the log is lost, for each following check, the last one first."""
    return []


@pytest.fixture
def run_scenario(
    offsets: dict[TP, int], lost: list[bool], tmp_path: Path
) -> Callable[[Callable[[Scripted], Awaitable[None]]], None]:
    """Run a scenario with a consumer; both in one event loop, because Faust creates one if none runs."""

    async def seek_offsets(assigned: set[TP], generation: int) -> dict[TP, int]:
        return {tp: offsets[tp] for tp in assigned}

    async def is_same_topic() -> bool:
        return not lost.pop()

    async def begin(scenario: Scenario) -> None:
        app = WorkerApp(
            "test",
            seek_offsets=seek_offsets,
            is_same_topic=is_same_topic,
            broker="kafka://127.0.0.1:1",
            datadir=str(tmp_path),
            store="memory://",
        )
        consumer = Scripted(app.transport, lambda message: None, lambda revoked: None, lambda assigned: None)
        consumer.fetched, consumer.sought = [], []
        try:
            await scenario(consumer)
        finally:
            consumer._thread.thread_loop.close()

    return lambda scenario: asyncio.run(begin(scenario))


async def delivered(consumer: Scripted) -> list[FetchedRun]:
    """Return the runs that one call of getmany yields."""
    return [message.value async for _, message in consumer.getmany(1.0)]


def test_a_fetched_run_is_one_message(run_scenario: RunScenario) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        consumer.fetched = [{ZERO: run(10, 14), ONE: run(20, 20)}]
        messages = [message async for _, message in consumer.getmany(1.0)]
        assert [(m.offset, m.value.first_offset, m.value.next_offset) for m in messages] == [(14, 10, 15), (20, 20, 21)]
        assert messages[0].value.records == [(offset, b"{}") for offset in range(10, 15)]

    run_scenario(scenario)


def test_seeks_go_to_the_next_offsets_of_the_shards(run_scenario: RunScenario, offsets: dict[TP, int]) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        assert consumer.sought == [offsets]

    run_scenario(scenario)


def test_nothing_is_delivered_while_flow_is_stopped_or_after_a_rebalance(run_scenario: RunScenario) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        consumer.stop_flow()
        consumer.fetched = [{ZERO: run(10, 14)}]
        assert await delivered(consumer) == []
        consumer.resume_flow()
        consumer.fetched = [{ZERO: run(10, 14), ONE: run(20, 25)}]
        async for _, _message in consumer.getmany(1.0):
            consumer.app.consumer_generation_id += 1
            break_after_first = True
        assert break_after_first
        assert consumer._expected == {ZERO: 15, ONE: 20}

    run_scenario(scenario)


def test_after_a_log_restarts_the_shards_choose_the_offsets_again(run_scenario: RunScenario, offsets: dict[TP, int]) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        offsets[ZERO] = 0  # the shard sees another topic id
        consumer.fetched = [{ZERO: run(0, 3)}, {ZERO: run(0, 3)}]
        assert await delivered(consumer) == []
        assert [one.first_offset for one in await delivered(consumer)] == [0]
        assert consumer.sought == [{ZERO: 10, ONE: 20}, {ZERO: 0, ONE: 20}]

    run_scenario(scenario)


def test_the_same_log_without_its_end_is_an_error_not_a_loop(run_scenario: RunScenario) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        consumer.fetched = [{ZERO: run(0, 3)}, {ZERO: run(0, 3)}]
        assert await delivered(consumer) == []  # it may be from before the seek
        with pytest.raises(LogTruncated, match="events-0 ends before offset 10"):
            await delivered(consumer)
        assert len(consumer.sought) == 2

    run_scenario(scenario)


def test_a_run_fetched_before_a_seek_and_returned_after_it_is_read_again(run_scenario: RunScenario) -> None:
    """A partition that has just been assigned is fetched from the group's offset until the first seek."""

    async def scenario(consumer: Scripted) -> None:
        async def seek_meanwhile(timeout: float) -> Any:
            await consumer.perform_seek()
            return {ZERO: run(0, 3), ONE: run(20, 21, 1)}, {ZERO, ONE}

        fetch, consumer._wait_next_records = consumer._wait_next_records, seek_meanwhile  # type: ignore[method-assign]
        assert await delivered(consumer) == []
        consumer._wait_next_records = fetch  # type: ignore[method-assign]
        assert len(consumer.sought) == 2
        consumer.fetched = [{ZERO: run(10, 11), ONE: run(20, 21, 1)}, {ZERO: run(12, 12)}]
        assert [one.first_offset for one in await delivered(consumer)] == [10, 20]
        assert [one.first_offset for one in await delivered(consumer)] == [12]
        assert len(consumer.sought) == 2

    run_scenario(scenario)


def test_a_gap_before_a_run_is_read_again_once_and_then_refused(run_scenario: RunScenario) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        consumer.fetched = [{ZERO: run(12, 13)}, {ZERO: run(12, 13)}]
        assert await delivered(consumer) == []  # it may be from before the seek
        with pytest.raises(LogHole, match="events-0 has no record at offset 10"):
            await delivered(consumer)
        assert len(consumer.sought) == 2

    run_scenario(scenario)


def test_a_gap_within_a_run_is_refused(run_scenario: RunScenario) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        consumer.fetched = [{ZERO: replace(run(10, 14), missing=12)}]
        with pytest.raises(LogHole, match="events-0 has no record at offset 12, though it has later ones"):
            await delivered(consumer)

    run_scenario(scenario)


def test_the_fetch_wait_is_short_and_only_committed_records_are_read(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, str]:
        async def seek_offsets(assigned: set[TP], generation: int) -> dict[TP, int]:
            return {}

        async def is_same_topic() -> bool:
            return True

        settings = StreamsSettings.model_validate({"data": {"dir": tmp_path}})
        app = WorkerApp(
            "test", seek_offsets=seek_offsets, is_same_topic=is_same_topic, **agents.faust_settings(settings, "127.0.0.1:1")
        )
        thread = app.consumer._thread
        thread.thread_loop.close()
        consumer = thread._create_worker_consumer(app.transport)
        await consumer.stop()
        return consumer._fetch_max_wait_ms, consumer._isolation_level

    assert asyncio.run(scenario()) == (FETCH_MAX_WAIT_MS, "read_committed")


def test_a_new_connection_has_the_topic_id_checked(run_scenario: RunScenario, offsets: dict[TP, int], lost: list[bool]) -> None:
    async def scenario(consumer: Scripted) -> None:
        await consumer.perform_seek()
        consumer.fetched = [{ZERO: run(10, 11)}, {ZERO: run(12, 13)}, {ZERO: run(0, 1)}]
        lost.extend([True, False])
        consumer.consumer_thread.reconnected = True
        assert [one.first_offset for one in await delivered(consumer)] == [10]
        offsets[ZERO] = 0
        consumer.consumer_thread.reconnected = True
        assert await delivered(consumer) == []  # their offsets fit, but they are from another log
        assert [(one.first_offset, one.generation) for one in await delivered(consumer)] == [(0, 2)]
        assert lost == []

    run_scenario(scenario)


def test_runs_carry_the_number_of_the_seek_before_them(run_scenario: RunScenario) -> None:
    async def scenario(consumer: Scripted) -> None:
        for generation in (1, 2):
            await consumer.perform_seek()
            consumer.fetched = [{ZERO: run(10, 11)}]
            assert [one.generation for one in await delivered(consumer)] == [generation]

    run_scenario(scenario)


def test_nothing_is_delivered_before_the_first_seek(run_scenario: RunScenario) -> None:
    async def scenario(consumer: Scripted) -> None:
        consumer.fetched = [{ZERO: run(10, 11)}]
        assert await delivered(consumer) == []

    run_scenario(scenario)


def test_a_quarantine_record_keeps_the_original_bytes() -> None:
    row = {"event_id": None, "reason": "malformed", "detail": "not JSON", "ts_us": None, "log_offset": 7, "line": 2}
    import msgspec

    readable = msgspec.json.decode(agents.quarantine_record({**row, "raw": "{ ü".encode()}, 3))
    assert readable == {
        "event_id": None,
        "reason": "malformed",
        "detail": "not JSON",
        "line": 2,
        "partition": 3,
        "offset": 7,
        "truncated": False,
        "ts": None,
        "raw": "{ ü",
    }
    hostile = msgspec.json.decode(agents.quarantine_record({**row, "ts_us": 1_500_000, "raw": b"\x1b[2J\xff"}, 3))
    assert "raw" not in hostile and hostile["raw_base64"] == "G1sySv8=" and hostile["ts"] == 1.5
    long = agents.quarantine_record({**row, "raw": b"x" * 900_000}, 3)
    assert msgspec.json.decode(long)["truncated"] and len(long) < 310_000
