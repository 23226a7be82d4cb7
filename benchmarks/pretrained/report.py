"""The table of a run, ten queries with their lists for a person to read, and which goals were missed."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.goals import Goal
from benchmarks.pretrained.measures import Interval, Row, bootstrap_mean, bootstrap_ratio
from benchmarks.pretrained.plan import Plan

SHOWN = 10
FEW_SHOT, SFT, DPO = "few-shot", "SFT", "DPO"
WORST_DRIFT = 1e-3
"""Nats a token: float32 sums in another order differ by some 1e-5, a lost or twice applied adapter by more than 1e-1."""


@dataclass(frozen=True)
class Results:
    """All that a run measured. `drift`: how far other ways to load the last policy are from serving's, in nats a token."""

    plan: Plan
    queries: tuple[str, ...]
    rows: tuple[Row, ...]
    ceiling: float
    figures: dict[str, dict[str, Any]]
    drift: dict[str, float]
    seconds: float

    def find(self, name: str) -> Row:
        """Return the row of a policy. Raises KeyError."""
        return {row.name: row for row in self.rows}[name]

    def compare(self, name: str, base: str) -> Interval:
        """Return the ratio of two policies' true click rates."""
        return bootstrap_ratio(self.find(name).rates, self.find(base).rates)


def judge(results: Results) -> list[Goal]:
    """Return the goals of a run with what it reached."""
    return [
        *(Goal(f"{row.name}: lists well-formed", row.well_formed, 1.0, "at least") for row in results.rows),
        *(Goal(f"{row.name}: texts without repetition", row.clean_texts * 100, 99.0, "at least", " %") for row in results.rows),
        Goal("SFT: lists in which the grammar forced a token", results.find(SFT).forced_lists * 100, 5.0, "at most", " %"),
        Goal("SFT over few-shot, true click rate, low end", results.compare(SFT, FEW_SHOT).low, 1.0, "at least", " x"),
        Goal("DPO over SFT, true click rate, low end", results.compare(DPO, SFT).low, 1.0, "at least", " x"),
        Goal("DPO over SFT, true click rate", results.compare(DPO, SFT).value, 1.25, "at least", " x"),
        *(
            Goal(f"DPO, {name}: nats a token from the served policy", value, WORST_DRIFT, "at most")
            for name, value in results.drift.items()
        ),
        Goal("the whole run", results.seconds / 60, results.plan.minutes, "at most", " min"),
    ]


def make_report(results: Results, goals: Sequence[Goal], seed: int) -> dict[str, Any]:
    """Return everything as JSON."""
    return {
        "machine": f"{platform.machine()}, {platform.system()}",
        "seed": seed,
        "policies": [row.to_dict() for row in results.rows],
        "ratios": {
            "sft_over_few_shot": asdict(results.compare(SFT, FEW_SHOT)),
            "dpo_over_sft": asdict(results.compare(DPO, SFT)),
        },
        "ceiling": results.ceiling,
        "trainings": results.figures,
        "drift": results.drift,
        "lists": [
            {"query": query, **{row.name: list(row.lists[number]) for row in results.rows}}
            for number, query in _pick_shown(results.queries)
        ],
        "seconds": results.seconds,
        "goals": [goal.to_dict() for goal in goals],
    }


def render(results: Results) -> str:
    """Return the table and the lists as Markdown."""
    head = ["policy", "well-formed", "forced lists", "forced tokens", "clean texts", "true click rate", "of the ceiling", "s"]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    lines += [_row(_cells(row, results.ceiling)) for row in results.rows]
    lines += ["", f"SFT over few-shot {results.compare(SFT, FEW_SHOT)}, DPO over SFT {results.compare(DPO, SFT)}"]
    lines += ["", f"The best lists of this world: {results.ceiling:.3f}.", ""]
    for number, query in _pick_shown(results.queries):
        lines += [f"**{query}**", *(f"- {row.name}: {'; '.join(row.lists[number])}" for row in results.rows), ""]
    return "\n".join(lines)


def _cells(row: Row, ceiling: float) -> list[str]:
    rate = bootstrap_mean(row.rates)
    shares = [f"{row.forced_lists:.1%}", f"{row.forced_tokens:.1%}", f"{row.clean_texts:.1%}"]
    return [row.name, f"{row.well_formed:.3f}", *shares, str(rate), f"{rate.value / ceiling:.0%}", f"{row.seconds:.0f}"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pick_shown(queries: Sequence[str]) -> list[tuple[int, str]]:
    """Return the first different queries with their numbers."""
    first = {query: number for number, query in reversed(list(enumerate(queries)))}
    return sorted((number, query) for query, number in first.items())[:SHOWN]
