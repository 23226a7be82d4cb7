"""The size of a demo: its calendar, traffic and models. All numbers that decide how long it takes are here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from queryloop.settings import Settings

TEMPLATE = "query: {query}\nnext: {related}\nlist:\n"
"""A short prompt for a small policy: it has no use for instructions in English."""


FULL_SECONDS: Mapping[str, float] = {
    "start": 6.0,
    "cold start": 60.0,
    "round 1: traffic": 130.0,
    "round 1: click predictor": 85.0,
    "round 1: index": 25.0,
    "round 1: policy": 95.0,
    "round 1: swap": 5.0,
    "round 2: traffic": 80.0,
    "round 2: click predictor": 65.0,
    "round 2: index": 20.0,
    "round 2: policy": 100.0,
    "round 2: swap": 5.0,
    "last traffic": 30.0,
    "report": 5.0,
}
"""Seconds of each stage on two cores; used only to estimate the time left."""


@dataclass(frozen=True)
class Round:
    """A number of simulated days, and of lists asked for in all of them."""

    days: int
    lists: int


@dataclass(frozen=True)
class DemoPlan:
    """Sizes of one demo. The calendar is `first`, a day of light traffic, `second`, another such day, and `last`."""

    annotations: int = 6000
    first: Round = Round(8, 24_000)
    second: Round = Round(4, 12_000)
    last: Round = Round(2, 4_000)
    trickle_visits_a_second: float = 2.0
    trickle_step_s: float = 30.0
    morning_s: float = 3.5 * 3600
    expected: Mapping[str, float] = field(default_factory=lambda: FULL_SECONDS)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def days(self) -> int:
        """Simulated days in all."""
        return self.first.days + self.second.days + self.last.days + 2


FULL_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "policy": {"base": "scratch", "hidden": 128, "layers": 2, "heads": 4, "vocabulary": 1500, "context": 256},
    "sft": {"epochs": 4.0, "batch": 64, "learning_rate": 4e-3},
    "search": {"prompts": 600, "at_once": 32},
    "dpo": {"learning_rate": 3e-3, "epochs": 2.0, "beta": 0.05, "loss_weights": [1.0, 2.0]},
    "gate": {"prompts": 600},
}

QUICK_OVERRIDES: Mapping[str, Mapping[str, Any]] = {
    "policy": {"base": "scratch", "hidden": 64, "layers": 2, "heads": 4, "vocabulary": 600, "context": 160},
    "sft": {"epochs": 4.0, "batch": 32, "learning_rate": 3e-3},
    "ctr": {"epochs": 2, "warm_epochs": 1},
    "search": {"prompts": 48, "budget": 8},
    "dpo": {"min_pairs": 4},
    # So small a policy hardly keeps the list format; the quick demo shows the swap, not its worth.
    "gate": {"prompts": 48, "z": 0.0, "max_duplicate_rate": 0.8},
    "index": {"max_steps": 40},
    # Few clicks give a rough p99 of their delay; short delays keep it far below the hours that the demo waits in event time.
    "product": {"click_delay_spread": 0.2},
}


def choose_plan(*, quick: bool) -> DemoPlan:
    """Return the full plan, or a small one that shows that everything runs but learns next to nothing."""
    if not quick:
        return DemoPlan(overrides=FULL_OVERRIDES)
    return DemoPlan(
        annotations=2000,
        first=Round(3, 1500),
        second=Round(1, 300),
        last=Round(1, 200),
        expected=dict.fromkeys(FULL_SECONDS, 5.0),
        overrides=QUICK_OVERRIDES,
    )


def make_settings(given: Settings, plan: DemoPlan, work: Path) -> Settings:
    """Return a demo's settings in the folder `work`: the given broker and product, free ports, the plan's sizes, no timetable."""
    from queryloop.settings import Settings
    from streams.runtime.processes import free_port
    from trainers.jobs.ledger import KINDS

    sections: dict[str, dict[str, Any]] = {
        "data": {"dir": work},
        # The embedded broker admits a worker only after most of its session timeout.
        "kafka": {**given.kafka.model_dump(), "port": 0, "session_timeout_s": 6.0},
        "worker": {"port": free_port(), "static": given.kafka.broker != "embedded"},
        # Every batch costs the worker a transaction in each shard: fewer, larger ones leave the two cores to the training.
        "emitter": {"linger_ms": 400.0},
        "serving": {"port": 0, "deadline_s": 25.0, "threads": 1},
        "tasks": {"suggest": {"template": TEMPLATE, "max_item_tokens": 16}},
        "timetable": {
            "port": 0,
            **dict.fromkeys(KINDS, "off"),
            "poll_s": 0.2,
            "publish_index": False,
        },
        "policy": {"annotations": work / "annotations.jsonl"},
        "product": {**given.product.model_dump(), "task": "suggest"},
    }
    for name, values in plan.overrides.items():
        sections[name] = {**sections.get(name, {}), **values}
    return Settings.model_validate(sections)
