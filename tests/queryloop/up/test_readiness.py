"""What is said while shards open and a release loads: what it is, once, and "ready" only when all is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from queryloop.up.readiness import NO_RELEASE, Readiness, announce, describe_release, describe_shards


@pytest.mark.parametrize(
    ("lag", "expected"),
    [
        ({"shards": {}, "missing": [0, 1, 2, 3]}, Readiness(False, "opening shards 0 of 4")),
        ({"shards": {"0": {}, "1": {}, "2": {}}, "missing": [3]}, Readiness(False, "opening shards 3 of 4")),
        ({"shards": {"0": {}}, "missing": [], "seconds": 0.0, "records": 0}, Readiness(True, "up")),
        ({"shards": {"0": {}}, "missing": [], "seconds": None, "records": None}, Readiness(True, "up")),
        (
            {"shards": {"0": {}}, "missing": [], "seconds": 340.0, "records": 1200},
            Readiness(True, "catching up: 1200 records, 340 s behind"),
        ),
    ],
)
def test_a_worker_is_ready_with_all_shards_open(lag: dict[str, object], expected: Readiness) -> None:
    assert describe_shards(lag) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"ready": True, "release": "r0003", "error": None}, Readiness(True, "lists are answered by r0003")),
        ({"ready": False, "loading": "r0000", "error": "release r0000 is loading"}, Readiness(False, "loading r0000")),
        (
            {"ready": False, "failed": True, "error": "release r0000 cannot go live: cut"},
            Readiness(False, "release r0000 cannot go live: cut"),
        ),
        ({"ready": False, "loading": None, "failed": False, "error": "no release"}, Readiness(True, NO_RELEASE)),
        (
            {"ready": False, "release": None, "loading": None, "failed": False, "missing": True, "error": "models need torch"},
            Readiness(True, "events are accepted; lists are refused (503): models need torch"),
        ),
    ],
)
def test_a_server_loads_has_failed_or_waits_for_a_first_release(answer: dict[str, object], expected: Readiness) -> None:
    assert describe_release(answer) == expected


def test_each_state_is_said_once_and_ready_last() -> None:
    server: Iterator[Readiness] = iter(
        [Readiness(False, "loading r0000")] * 3 + [Readiness(True, "lists are answered by r0000")] * 2
    )
    worker = iter([Readiness(False, "opening shards 1 of 4"), *[Readiness(True, "up")] * 4])
    lines: list[str] = []
    times = iter([107.5])
    announce([lambda: next(worker), lambda: next(server)], lines.append, 100.0, clock=lambda: next(times), wait=lambda _: None)
    assert lines == ["opening shards 1 of 4; loading r0000", "loading r0000", "ready in 7.5 s: lists are answered by r0000"]
