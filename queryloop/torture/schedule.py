"""What is done to the processes and when: drawn from the seed before anything starts, in shares of the log that is applied."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

FIRST, LAST = 0.02, 0.96
SECOND_KILLS = 0.15
"""Share of the kills that hit a worker again while it still starts."""


class Act(StrEnum):
    """What can happen."""

    KILL = "kill"
    KILL_STARTING = "kill_starting"
    KILL_TENDING = "kill_tending"
    KILL_PRODUCER = "kill_producer"
    RESTART_BROKER = "restart_broker"
    KILL_LEADER = "kill_leader"
    REBALANCE = "rebalance"


@dataclass(frozen=True, order=True)
class Step:
    """One act on worker, producer or partition `victim`, once the share `at` of the log is applied and `delay_s` is over."""

    at: float
    act: Act
    victim: int
    delay_s: float


@dataclass(frozen=True)
class Sizes:
    """How many of everything. `nodes` above 1: leaders of partitions are killed instead of the one broker."""

    kills: int
    workers: int
    producers: int
    partitions: int
    nodes: int = 1


def draw_schedule(seed: int, sizes: Sizes) -> list[Step]:
    """Return the steps in order. The kills of workers lie one in each of `kills` equal parts of the run, so over all of it."""
    rng = random.Random(f"schedule {seed}")
    steps = [_kill(rng, number, sizes) for number in range(sizes.kills)]
    others = [Act.KILL_TENDING, Act.REBALANCE, Act.KILL_PRODUCER]
    others += [Act.KILL_LEADER] * sizes.partitions if sizes.nodes > 1 else [Act.RESTART_BROKER]
    rng.shuffle(others)
    leaders = iter(range(sizes.partitions))
    for number, act in enumerate(others):
        at = 0.08 + 0.8 * (number + rng.random()) / len(others)
        victim = next(leaders) if act is Act.KILL_LEADER else rng.randrange(_population(act, sizes))
        steps.append(Step(at, act, victim, rng.random() / 2))
    return sorted(steps)


def _kill(rng: random.Random, number: int, sizes: Sizes) -> Step:
    at = FIRST + (LAST - FIRST) * (number + rng.random()) / sizes.kills
    again = number and rng.random() < SECOND_KILLS
    return Step(at, Act.KILL_STARTING if again else Act.KILL, rng.randrange(sizes.workers), rng.random() / 2)


def _population(act: Act, sizes: Sizes) -> int:
    return {Act.KILL_PRODUCER: sizes.producers, Act.RESTART_BROKER: 1}.get(act, sizes.workers)
