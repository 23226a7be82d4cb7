"""The schedule of a torture run: drawn from the seed, over the whole run, with every kind of fault."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from queryloop.torture.schedule import Fault, Sizes, draw_schedule

FULL = Sizes(kills=30, workers=2, producers=2, partitions=4)
KILLS = {Fault.KILL, Fault.KILL_STARTING}


def test_a_seed_draws_one_schedule() -> None:
    assert draw_schedule(5, FULL) == draw_schedule(5, FULL)
    assert draw_schedule(5, FULL) != draw_schedule(6, FULL)


@pytest.mark.parametrize("seed", range(20))
def test_kills_are_spread_over_the_whole_run_and_hit_every_worker(seed: int) -> None:
    kills = [step for step in draw_schedule(seed, FULL) if step.fault in KILLS]
    assert len(kills) == 30
    assert kills[0].at < 0.06 and kills[-1].at > 0.9
    assert max(after.at - before.at for before, after in itertools.pairwise(kills)) < 0.07
    assert {step.victim for step in kills} == {0, 1}


@pytest.mark.parametrize("seed", range(20))
def test_one_broker_restart_one_compaction_one_rebalance_one_producer(seed: int) -> None:
    acts = Counter(step.fault for step in draw_schedule(seed, FULL) if step.fault not in KILLS)
    assert acts == {Fault.RESTART_BROKER: 1, Fault.KILL_IN_COMPACTION: 1, Fault.REBALANCE: 1, Fault.KILL_PRODUCER: 1}


def test_in_a_cluster_the_leader_of_each_partition_in_turn_instead_of_the_broker() -> None:
    steps = draw_schedule(1, Sizes(kills=3, workers=2, producers=2, partitions=4, nodes=3))
    assert [step.victim for step in steps if step.fault is Fault.KILL_LEADER] == [0, 1, 2, 3]
    assert Fault.RESTART_BROKER not in {step.fault for step in steps}


def test_steps_are_in_order_and_victims_exist() -> None:
    steps = draw_schedule(2, Sizes(kills=50, workers=3, producers=2, partitions=4))
    assert steps == sorted(steps)
    assert all(0 < step.at < 1 and 0 <= step.delay_s <= 0.5 for step in steps)
    assert all(step.victim < (2 if step.fault is Fault.KILL_PRODUCER else 3) for step in steps)


def test_no_kill_is_a_schedule_too() -> None:
    assert not KILLS & {step.fault for step in draw_schedule(0, Sizes(kills=0, workers=1, producers=2, partitions=4))}
