"""The counts that the generated log must lead to, partition by partition, and how they differ from what the workers report.

Each generated line has its expected outcome, so this needs neither Kafka nor a recount: an event that was acknowledged and then
lost, or counted twice, shows here even when the broker itself lost it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from queryloop.torture.generated_log import AGAIN, COUNTED, ORPHAN, REPEATED, Line
from streams.emitter.record_batches import partition_of
from streams.events.schema import Reason

PartitionCounts = dict[int, dict[str, int]]
"""For each partition: `counted`, `orphan_click` (pending clicks included) and the other reasons, those that are not 0."""


def expected_counts(lines: Iterable[Line], partitions: int) -> PartitionCounts:
    """Return how many of these lines must be counted and quarantined; a line whose bytes came before adds nothing."""
    found: dict[int, Counter[str]] = {number: Counter() for number in range(partitions)}
    for line in lines:
        if line.outcome not in (AGAIN, REPEATED):
            name = Reason.ORPHAN_CLICK if line.outcome == ORPHAN else line.outcome
            found[partition_of(line.session_id, partitions)][str(name)] += 1
    return {number: dict(sorted(counts.items())) for number, counts in found.items()}


def reported_counts(shards: Mapping[int, Mapping[str, Any]]) -> PartitionCounts:
    """Return the counts of the shards, each as a worker's /status describes it."""
    return {number: _count_shard(shard) for number, shard in sorted(shards.items())}


def _count_shard(shard: Mapping[str, Any]) -> dict[str, int]:
    counts = Counter({COUNTED: shard["counted"], **shard["quarantined"]})
    counts[str(Reason.ORPHAN_CLICK)] += shard["pending"]
    return {name: number for name, number in sorted(counts.items()) if number}


def differences(expected: PartitionCounts, found: PartitionCounts) -> list[str]:
    """Return one line for each number that differs, none when all agree."""
    lines = []
    for partition in sorted(expected.keys() | found.keys()):
        wanted, have = expected.get(partition, {}), found.get(partition, {})
        for name in sorted(wanted.keys() | have.keys()):
            if wanted.get(name, 0) != have.get(name, 0):
                lines.append(f"partition {partition}: {name} {have.get(name, 0):,}, the log has {wanted.get(name, 0):,}")
    return lines
