"""What the generated log says must have been counted, partition by partition, against what the workers say.

The log knows what must become of each line, so this needs neither Kafka nor a recount: an event that was acknowledged and then
lost, or counted twice, shows here even when the broker itself lost it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from queryloop.torture.generated_log import AGAIN, COUNTED, ORPHAN, REPEATED, Line
from streams.emitter.record_batches import partition_of
from streams.events.schema import Reason

Account = dict[int, dict[str, int]]
"""For each partition: `counted`, `orphan_click` (those that still wait included) and the other reasons, as far as not 0."""


def expected_account(lines: Iterable[Line], partitions: int) -> Account:
    """Return what must be counted and quarantined of these lines; the same bytes again add nothing."""
    found: dict[int, Counter[str]] = {number: Counter() for number in range(partitions)}
    for line in lines:
        if line.outcome not in (AGAIN, REPEATED):
            name = Reason.ORPHAN_CLICK if line.outcome == ORPHAN else line.outcome
            found[partition_of(line.session_id, partitions)][str(name)] += 1
    return {number: dict(sorted(counts.items())) for number, counts in found.items()}


def account_of(shards: Mapping[int, Mapping[str, Any]]) -> Account:
    """Return the same of what workers' /status says of their shards."""
    return {number: _account_of(shard) for number, shard in sorted(shards.items())}


def _account_of(shard: Mapping[str, Any]) -> dict[str, int]:
    counts = Counter({COUNTED: shard["counted"], **shard["quarantined"]})
    counts[str(Reason.ORPHAN_CLICK)] += shard["pending"]
    return {name: number for name, number in sorted(counts.items()) if number}


def differences(expected: Account, found: Account) -> list[str]:
    """Return one line for each number that differs, none when all agree."""
    said = []
    for partition in sorted(expected.keys() | found.keys()):
        wanted, have = expected.get(partition, {}), found.get(partition, {})
        for name in sorted(wanted.keys() | have.keys()):
            if wanted.get(name, 0) != have.get(name, 0):
                said.append(f"partition {partition}: {name} {have.get(name, 0):,}, the log has {wanted.get(name, 0):,}")
    return said
