"""The fan-out: lag in records, events and seconds, unknown as null; a shard without an answer is an error or named as missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from streams.api.fan_out import FanOut, PartitionsMissing
from streams.api.lag import describe_lag
from streams.store.progress import LogEnd, Progress
from streams.store.shard import ShardTotals

NOW = 1000.0


@pytest.mark.parametrize(
    ("next_offset", "end", "progress", "expected"),
    [
        (10, 10, Progress(900_000, 100.0), (0, 0, 0.0)),
        (10, 14, Progress(900_000, 100.0), (4, 400, 100.0)),
        (10, 14, Progress(), (4, 20, None)),  # 5 events per record since the shard began
        (10, 9, Progress(900_000, 1.0), (0, 0, 0.0)),  # the broker's answer is older than the last batch
        (10, None, Progress(900_000, 1.0), (None, None, 100.0)),
        (None, 3, Progress(), (None, None, None)),
        (None, 0, Progress(), (0, 0, 0.0)),  # a partition that never had a record
    ],
)
def test_lag_is_records_events_and_seconds_behind(
    next_offset: int | None, end: int | None, progress: Progress, expected: tuple[int | None, int | None, float | None]
) -> None:
    totals = ShardTotals(next_offset=next_offset, events=50, latest_us=990_000_000)
    lag = describe_lag(totals, progress, None if end is None else LogEnd(end, end), NOW)
    assert (lag["records"], lag["events"], lag["seconds"]) == expected
    assert lag["event_time_seconds"] == 10.0


def test_records_of_an_open_transaction_are_no_lag_and_are_named() -> None:
    lag = describe_lag(ShardTotals(next_offset=10, events=50), Progress(900_000, 1.0), LogEnd(stable=10, last=13), NOW)
    assert (lag["records"], lag["seconds"], lag["end_offset"], lag["open_transaction_records"]) == (0, 0.0, 10, 3)


class Peers:
    """Other workers that hold some partitions."""

    def __init__(self, parts: dict[int, str]) -> None:
        self.parts = parts
        self.asked: list[set[int]] = []

    async def ask(self, path: str, parameters: Mapping[str, Any], partitions: Iterable[int]) -> dict[int, str]:
        self.asked.append(set(partitions))
        return {number: self.parts[number] for number in partitions if number in self.parts}


def gather(peers: Peers, partial: bool) -> Any:
    fan_out = FanOut("one", 4, None, peers, lambda _: None)  # type: ignore[arg-type]

    async def read(partitions: frozenset[int]) -> dict[int, str]:
        return {0: "mine"}

    return asyncio.run(fan_out.gather("/v1/x", {}, read, partial))


def test_other_workers_are_asked_only_for_shards_not_held_here() -> None:
    peers = Peers({1: "b", 2: "c", 3: "d"})
    parts = gather(peers, partial=False)
    assert parts.values() == ["mine", "b", "c", "d"]
    assert peers.asked == [{1, 2, 3}]


def test_missing_partitions_are_an_error_or_named() -> None:
    peers = Peers({2: "c"})
    with pytest.raises(PartitionsMissing, match="partitions 1, 3") as error:
        gather(peers, partial=False)
    assert error.value.partitions == [1, 3]
    parts = gather(peers, partial=True)
    assert (parts.found, parts.missing) == ({0: "mine", 2: "c"}, [1, 3])
