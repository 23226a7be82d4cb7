"""A simulated day: a plan of `benchmarks.capacity.sizing` under a daily curve, with skewed partitions and an outage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.capacity.sizing import DAY_S, Assumptions, Plan
from benchmarks.capacity.skew import draw_sessions, partition_shares

STEP_S = 60
PEAK_AT_S = 20 * 3600
CURVE_MEAN = 5 / 16
"""The mean of cos^6."""


@dataclass(frozen=True)
class Day:
    """The worst of each number over the simulated days."""

    partition_skew: float
    """The busiest partition over the mean."""
    worker_skew: float
    worker_use: float
    """Arrivals over capacity at the busiest worker's peak, plus the cost of its batches whatever their size."""
    partition_use: float
    """The busiest partition's arrivals over the capacity of a whole worker: one thread counts a partition."""
    backlog_events: float
    catch_up_s: float
    """From the end of the outage until everything is applied; infinite when the day ends first."""


def rate_at(second: float, mean: float, peak_factor: float) -> float:
    """Return the events a second at a time of day: a floor and a cos^6 hump, with `peak_factor` times the mean at the peak."""
    floor = (1 - CURVE_MEAN * peak_factor) / (1 - CURVE_MEAN)
    hump = math.cos(math.pi * (second - PEAK_AT_S) / DAY_S) ** 6
    return mean * (floor + (peak_factor - floor) * hump)


def simulate(plan: Plan, assumed: Assumptions, sessions: int, days: int, seed: int = 0) -> Day:
    """Simulate `days` days with sessions drawn anew, at most `sessions` of them, and return the worst of each number."""
    import numpy as np

    # The skew is that of an hour at the peak; more sessions than that would only even it out.
    drawn = max(1, min(sessions, int(plan.peak_per_s * 3600 / assumed.sessions_events)))
    worst: list[Day] = []
    for number in range(days):
        rng = np.random.default_rng([seed, number])
        weights = draw_sessions(rng, drawn, assumed.sessions_events, assumed.session_tail, assumed.session_most)
        worst.append(simulate_day(plan, assumed, partition_shares(rng, weights, plan.partitions).tolist()))
    return Day(*(max(values) for values in zip(*(day.__dict__.values() for day in worst), strict=True)))


def simulate_day(plan: Plan, assumed: Assumptions, shares: Sequence[float]) -> Day:
    """Simulate one day with these shares of the partitions, which are assigned to workers in turn."""
    workers = [sum(shares[worker :: plan.workers]) for worker in range(plan.workers)]
    busiest = max(workers)
    backlog, catch_up_s = outage_backlog(plan, assumed, busiest)
    return Day(
        max(shares) * plan.partitions,
        busiest * plan.workers,
        plan.peak_per_s * busiest / plan.worker_capacity_per_s + plan.little_use,
        plan.peak_per_s * max(shares) / plan.worker_capacity_per_s,
        backlog,
        catch_up_s,
    )


def outage_backlog(plan: Plan, assumed: Assumptions, share: float) -> tuple[float, float]:
    """Return the largest backlog of a worker with this share, and the seconds it needs to catch up.

    It applies nothing for `outage_s` before the peak, then as much as its capacity allows while events go on arriving.
    """
    waiting = most = 0.0
    start = PEAK_AT_S - assumed.outage_s
    for step in range(int(DAY_S // STEP_S)):
        since = start + step * STEP_S
        arriving = rate_at(since + STEP_S / 2, plan.mean_per_s, assumed.peak_factor) * share * STEP_S
        down = since < PEAK_AT_S
        waiting = max(0.0, waiting + arriving - (0.0 if down else plan.worker_capacity_per_s * STEP_S))
        most = max(most, waiting)
        if not down and waiting == 0.0:
            return most, since + STEP_S - PEAK_AT_S
    return most, math.inf
