"""Section `throughput`: our worker, the bound and the peer in turn on the same topics, with 100 events a record and with one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

from benchmarks.goals import Goal, Spread
from benchmarks.peer_runs import measure_decoding, measure_quix
from benchmarks.progress_log import log_progress
from benchmarks.worker_runs import Rate, Site, Topic, measure_worker

BATCHED, SINGLE = 100, 1
GOALS = {BATCHED: (0.7, 5.0), SINGLE: (1.0, 3.0)}
"""Lowest ratios of our rate to the bound and to the peer's equivalent count, by events a record."""
OURS, BARE, QUIX, QUIX_LIGHT = "ours", "bare", "quixstreams", "quixstreams_light"


@dataclass
class Contest:
    """The repeats of each contestant on one topic."""

    topic: Topic
    rates: dict[str, list[Rate]] = field(default_factory=dict)

    def ratio(self, peer: str) -> Spread:
        """Return our rate over a peer's, round by round: the contestants of a round run one after another."""
        return ratios(self.rates[OURS], self.rates[peer])


def measure_throughput(site: Site, topics: list[Topic], repeats: int, quix_events: int) -> list[Contest]:
    """Run the contestants in turn: a warm-up round, then `repeats` rounds that count."""
    contests = [Contest(topic) for topic in topics]
    for number in range(repeats + 1):
        for contest in contests:
            round_ = {name: run() for name, run in contestants(site, contest.topic, quix_events).items()}
            summary = ", ".join(f"{name} {rate.per_s:,.0f}/s" for name, rate in round_.items())
            log_progress(f"{f'round {number} of {repeats}' if number else 'warm-up'}, {contest.topic.lines} a record: {summary}")
            if number:
                for name, rate in round_.items():
                    contest.rates.setdefault(name, []).append(rate)
    return contests


def contestants(site: Site, topic: Topic, quix_events: int) -> dict[str, Callable[[], Rate]]:
    """Return what runs in a round, in order."""
    events = min(quix_events, topic.events // 2)
    return {
        OURS: partial(measure_worker, site, topic),
        BARE: partial(measure_decoding, site, topic),
        QUIX: partial(measure_quix, site, topic, events, "equivalent"),
        QUIX_LIGHT: partial(measure_quix, site, topic, events, "light"),
    }


def ratios(over: list[Rate], under: list[Rate]) -> Spread:
    """Return the ratio of each round."""
    return Spread.of([one.per_s / other.per_s for one, other in zip(over, under, strict=True)])


def judge_throughput(contests: list[Contest]) -> list[Goal]:
    """Return the goals: two ratios for each way of batching."""
    goals = []
    for contest in contests:
        to_bare, to_quix = GOALS[contest.topic.lines]
        name = f"throughput, {contest.topic.lines} a record: ours to"
        goals.append(Goal(f"{name} bare json.loads", contest.ratio(BARE).median, to_bare, "at least", " x"))
        goals.append(Goal(f"{name} quixstreams (equivalent count)", contest.ratio(QUIX).median, to_quix, "at least", " x"))
    return goals


def report_throughput(contests: list[Contest]) -> dict[str, Any]:
    """Return the section as JSON: by events a record and contestant."""
    return {
        str(contest.topic.lines): {
            name: {
                "ours_is": contest.ratio(name).__dict__,
                "ours_is_by_thread": busiest_us(rates) / busiest_us(contest.rates[OURS]),
                **_summarise(rates),
            }
            for name, rates in contest.rates.items()
        }
        for contest in contests
    }


def _summarise(rates: list[Rate]) -> dict[str, Any]:
    return {
        "events": rates[0].events,
        "per_s": Spread.of([rate.per_s for rate in rates]).__dict__,
        "whole_s": median(rate.whole_s for rate in rates),
        "cpu_us_an_event": median(rate.worker_cpu_s / rate.events * 1e6 for rate in rates),
        "threads_us_an_event": [_us(median(values), rates[0]) for values in _threads(rates)],
        "broker_cpu_us_an_event": median(rate.broker_cpu_s / rate.events * 1e6 for rate in rates),
    }


def busiest_us(rates: list[Rate]) -> float:
    """Return the CPU microseconds an event of the busiest thread, which bounds the rate where every thread has a core."""
    return median(_us(rate.threads_s[0], rate) for rate in rates)


def _threads(rates: list[Rate]) -> list[tuple[float, ...]]:
    """Return the CPU seconds of the busiest threads, each with its repeats, without nearly idle ones."""
    found = list(zip(*(rate.threads_s for rate in rates), strict=False))
    return [values for values in found if _us(median(values), rates[0]) >= 0.1]


def _us(seconds: float, rate: Rate) -> float:
    return seconds / rate.events * 1e6
