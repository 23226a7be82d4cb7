"""Which faults are done when: drawn from the seed before anything starts, at shares of the log that is counted."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

FIRST, LAST = 0.02, 0.96
SECOND_KILLS = 0.15
"""Share of the kills after which the worker is killed again while it starts."""


class Fault(StrEnum):
    """What can be done to a process."""

    KILL = "kill"
    KILL_STARTING = "kill_starting"
    KILL_IN_COMPACTION = "kill_tending"
    KILL_PRODUCER = "kill_producer"
    RESTART_BROKER = "restart_broker"
    KILL_LEADER = "kill_leader"
    REBALANCE = "rebalance"


@dataclass(frozen=True, order=True)
class Step:
    """One fault to worker, producer or partition number `victim`, `delay_s` after the share `at` of the log is counted."""

    at: float
    fault: Fault
    victim: int
    delay_s: float


@dataclass(frozen=True)
class Sizes:
    """How many there are of everything. With several `nodes` leaders of partitions are killed instead of the one broker."""

    kills: int
    workers: int
    producers: int
    partitions: int
    nodes: int = 1


def draw_schedule(seed: int, sizes: Sizes) -> list[Step]:
    """Return the steps in order. One worker is killed in each of `kills` equal parts of the run."""
    rng = random.Random(f"schedule {seed}")
    steps = [_kill(rng, number, sizes) for number in range(sizes.kills)]
    others = [Fault.KILL_IN_COMPACTION, Fault.REBALANCE, Fault.KILL_PRODUCER]
    others += [Fault.KILL_LEADER] * sizes.partitions if sizes.nodes > 1 else [Fault.RESTART_BROKER]
    rng.shuffle(others)
    leaders = iter(range(sizes.partitions))
    for number, fault in enumerate(others):
        at = 0.08 + 0.8 * (number + rng.random()) / len(others)
        victim = next(leaders) if fault is Fault.KILL_LEADER else rng.randrange(_population(fault, sizes))
        steps.append(Step(at, fault, victim, rng.random() / 2))
    return sorted(steps)


def _kill(rng: random.Random, number: int, sizes: Sizes) -> Step:
    at = FIRST + (LAST - FIRST) * (number + rng.random()) / sizes.kills
    again = number and rng.random() < SECOND_KILLS
    return Step(at, Fault.KILL_STARTING if again else Fault.KILL, rng.randrange(sizes.workers), rng.random() / 2)


def _population(fault: Fault, sizes: Sizes) -> int:
    return {Fault.KILL_PRODUCER: sizes.producers, Fault.RESTART_BROKER: 1}.get(fault, sizes.workers)
