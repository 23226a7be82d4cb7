"""The progress of the log, and the gate that keeps the producers' clocks together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from queryloop.torture.flow import AHEAD_STAGES, Flow
from queryloop.torture.generated_log import TortureLog
from queryloop.torture.stage_files import Progress, StageFiles

MADE = TortureLog(0, 20_000, 2)


@pytest.fixture
def files(tmp_path: Path) -> StageFiles:
    return StageFiles(tmp_path / "stages")


@pytest.fixture
def flow(files: StageFiles) -> Flow:
    return Flow(MADE, files, "log-1")


def shards(offset: int, topic_id: str = "log-1") -> dict[int, dict[str, Any]]:
    return {0: {"topic_id": topic_id, "next_offset": offset}, 1: {"topic_id": topic_id, "next_offset": offset}}


def report(files: StageFiles, stages: int, offset: int) -> None:
    """Both producers have that many stages acknowledged, up to that offset in both partitions."""
    for producer in range(2):
        files.report(producer, Progress(stages, stages, {0: offset - producer, 1: offset}))


def test_nothing_flows_before_it_is_allowed(flow: Flow, files: StageFiles) -> None:
    flow.update({})
    assert files.gate() == 0
    flow.allow(0.05)
    flow.update({})
    assert files.gate() == 2 == 0.05 * MADE.stages


def test_no_producer_gets_more_than_two_stages_ahead_of_the_slowest(flow: Flow, files: StageFiles) -> None:
    flow.allow(1.0)
    files.report(0, Progress(9, 9, {0: 9}))
    files.report(1, Progress(4, 3, {1: 3}))
    flow.update(shards(100))
    assert flow.sent_stages == 3
    assert files.gate() == 5


def test_a_stage_counts_once_every_shard_has_passed_its_end(flow: Flow, files: StageFiles) -> None:
    flow.allow(1.0)
    report(files, 1, 10)
    flow.update({**shards(10), 1: {"topic_id": "log-1", "next_offset": 9}})
    assert flow.applied_stages == 0
    flow.update(shards(10))
    assert flow.applied_stages == 1
    assert flow.applied_share == 1 / MADE.stages


def test_producers_wait_for_the_slowest_shard(flow: Flow, files: StageFiles) -> None:
    flow.allow(1.0)
    report(files, AHEAD_STAGES - 1, 10)
    flow.update(shards(5))
    assert files.gate() == AHEAD_STAGES


def test_offsets_of_a_lost_log_are_ignored_and_the_flow_goes_on(flow: Flow, files: StageFiles) -> None:
    flow.allow(1.0)
    report(files, 5, 50)
    flow.update(shards(50))
    assert flow.applied_stages == 5
    flow.log_lost("log-2")
    report(files, 6, 60)
    flow.update(shards(60))
    assert flow.applied_stages == 5, "that report may still be of the old log"
    report(files, 7, 70)
    flow.update(shards(70))
    assert flow.applied_stages == 5, "the shards have the old log"
    flow.update(shards(70, "log-2"))
    assert flow.applied_stages == 7


def test_idle_is_when_all_that_may_flow_is_counted(flow: Flow, files: StageFiles) -> None:
    flow.allow(0.05)
    report(files, 2, 20)
    flow.update(shards(19))
    assert not flow.idle
    flow.update(shards(20))
    assert flow.idle and not flow.done
    flow.allow_more(3)
    assert not flow.idle


def test_what_is_acknowledged_is_counted_in_lines(flow: Flow, files: StageFiles) -> None:
    report(files, MADE.stages, 1000)
    flow.update(shards(1000))
    assert flow.acknowledged == 20_000
    flow.allow(1.0)
    assert flow.done
