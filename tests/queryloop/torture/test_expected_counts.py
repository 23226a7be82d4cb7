"""The counts that a generated log must lead to, and a line for each number of the shards that differs."""

from __future__ import annotations

from typing import Any

from queryloop.torture.expected_counts import differences, expected_counts, reported_counts
from queryloop.torture.generated_log import AGAIN, COUNTED, ORPHAN, REPEATED, Line
from streams.events.schema import Reason


def line(outcome: str, session_id: str = "s") -> Line:
    return Line(0, session_id, b"", outcome)


def shard(**numbers: Any) -> dict[str, Any]:
    return {"counted": 0, "quarantined": {}, "pending": 0, **numbers}


def test_the_same_bytes_again_and_another_version_of_an_impression_add_nothing() -> None:
    lines = [line(COUNTED), line(AGAIN), line(REPEATED), line(Reason.LATE_CLICK)]
    assert expected_counts(lines, 1) == {0: {"counted": 1, "late_click": 1}}


def test_a_partition_has_the_lines_of_its_sessions() -> None:
    lines = [line(COUNTED, f"session {number}") for number in range(100)]
    account = expected_counts(lines, 4)
    assert sorted(account) == [0, 1, 2, 3]
    assert sum(counts["counted"] for counts in account.values()) == 100


def test_a_click_on_nothing_is_an_orphan_whether_it_is_still_pending_or_not() -> None:
    expected = expected_counts([line(ORPHAN), line(ORPHAN)], 1)
    assert differences(expected, reported_counts({0: shard(pending=1, quarantined={"orphan_click": 1})})) == []


def test_an_event_that_is_lost_and_one_that_counts_twice_are_differences() -> None:
    expected = {0: {"counted": 1_000}, 1: {"counted": 5, "malformed": 1}}
    found = reported_counts({0: shard(counted=999), 1: shard(counted=6)})
    assert differences(expected, found) == [
        "partition 0: counted 999, the log has 1,000",
        "partition 1: counted 6, the log has 5",
        "partition 1: malformed 0, the log has 1",
    ]


def test_a_shard_that_nobody_holds_is_missing_in_full() -> None:
    assert differences({0: {"counted": 2}}, {}) == ["partition 0: counted 0, the log has 2"]
