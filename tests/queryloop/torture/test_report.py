"""The report of a torture run: the table, the verdict, the goal on its own line, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from queryloop.torture.faults import FaultRecord
from queryloop.torture.harness import UnexpectedExit
from queryloop.torture.report import Result, render
from queryloop.torture.workers import Restart

ASKED = {"events": 20_000, "kills": 3, "workers": 2, "seed": 4, "broker": "kafka", "brokers": 1, "producers": 2}
EQUAL = {"equal": True, "complete": True, "exit": 0, "differences": []}


@pytest.fixture
def result() -> Result:
    restarts = [
        Restart("worker-0", "first start", 0.0, 9.0),
        Restart("worker-0", "killed", 1.0, 1.5),
        Restart("worker-1", "killed", 2.0, 1.7),
        Restart("worker-1", "killed in a compaction", 3.0, 3.0),
        Restart("worker-1", "killed", 4.0, None, again=True),
        Restart("worker-0", "rebalance", 5.0, 8.0),
    ]
    record = FaultRecord(kills=3, tending_kills=1, producer_kills=1, broker_outages=[9.5], broker_recoveries=[10.25])
    return Result(ASKED, 40.0, record, restarts, [], [], EQUAL, True, None)


def test_all_equal_and_the_goal_met(result: Result) -> None:
    text = render(result)
    assert "median 1.70 s, p90 3.00 s, max 3.00 s (3 restarts)" in text, "only kills that were followed by a batch"
    assert "500 events/s" in text
    assert "answers 9.5 s after its kill; events count 10.2 s after it" in text
    assert "every event is counted exactly once" in text
    assert "goal met" in text
    assert "data folder" not in text
    assert max(map(len, text.splitlines())) < 120


def test_a_missed_goal_has_its_own_line_and_changes_no_verdict(result: Result) -> None:
    slow = replace(result, restarts=[Restart("worker-0", "killed", 0.0, 3.25)])
    assert "goal missed: restart to applied in 2 s in the median, it took 1.25 s longer" in render(slow)
    assert slow.equal
    assert slow.as_dict()["restart_to_applied_s"]["met"] is False


def test_the_goal_is_for_real_kafka(result: Result) -> None:
    embedded = replace(result, asked={**ASKED, "broker": "embedded"}, restarts=[Restart("worker-0", "killed", 0.0, 6.0)])
    assert "goal" not in render(embedded)
    assert embedded.as_dict()["restart_to_applied_s"]["met"] is None


def test_a_difference_is_printed_and_the_data_folder_named(result: Result) -> None:
    wrong = replace(result, differences=["partition 0: counted 9, the log has 10"], folder=Path("/tmp/kept"))
    text = render(wrong)
    assert not wrong.equal
    assert "COUNTS ARE WRONG" in text and "partition 0: counted 9, the log has 10" in text and "data folder: /tmp/kept" in text


@pytest.mark.parametrize(
    ("said", "verified", "words"),
    [
        ({"equal": False, "complete": True}, False, "NOT EQUAL"),
        ({"equal": True, "complete": False}, False, "not all could be compared"),
        ({"equal": True, "complete": False}, True, "the log was lost and sent again"),
    ],
)
def test_the_outcome_of_verify_is_printed(result: Result, said: dict[str, bool], verified: bool, words: str) -> None:
    other = replace(result, verify=said, verified=verified)
    assert words in render(other)
    assert other.equal is verified


def test_a_process_that_ended_by_itself_is_named(result: Result) -> None:
    assert "worker-1 (1)" in render(replace(result, unexpected_exits=[UnexpectedExit("worker-1", 1)]))


def test_the_report_is_json(result: Result) -> None:
    told = json.loads(json.dumps(replace(result, folder=Path("x")).as_dict()))
    assert told["equal"] is True
    assert told["restart_to_applied_s"] == {"measured": 3, "median": 1.7, "p90": 3.0, "max": 3.0, "goal": 2.0, "met": True}
    assert told["done"]["kills"] == 3
    assert told["events_per_second"] == 500
