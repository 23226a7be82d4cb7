"""The sizes of a run: how much is learned from, searched and measured, and the settings of every training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from serving.policy.engines import Decoding
from serving.policy.tasks import DEFAULT_TASKS, Task
from serving.predictor.settings import PredictorSettings
from trainers.policy.aligners.dpo import DpoSettings
from trainers.policy.gate import GateSettings
from trainers.policy.search import SearchSettings
from trainers.policy.sft import SftSettings
from trainers.predictor.training import CtrSettings

TASK: Task = DEFAULT_TASKS["suggest"].model_copy(update={"max_item_tokens": 16})
"""The longest query of the world has 13 tokens of SmolLM2."""
DECODING = Decoding(temperature=0.9, top_p=0.95, redraws=3)
"""Serving's defaults: what is measured is what would be served."""


@dataclass(frozen=True)
class Plan:
    """Sizes of one run. `shots`: example lists in a few-shot prompt; `minutes`: the goal for the whole run on two cores."""

    annotations: int
    shots: int
    logged_lists: int
    test_prompts: int
    minutes: float
    sft: SftSettings
    ctr: CtrSettings
    predictor: PredictorSettings
    search: SearchSettings
    dpo: DpoSettings
    gate: GateSettings


FULL = Plan(
    annotations=500,
    shots=4,
    logged_lists=40_000,
    test_prompts=240,
    minutes=40.0,
    sft=SftSettings(epochs=2.0, batch=8, learning_rate=5e-4, lora_rank=16),
    ctr=CtrSettings(),
    predictor=PredictorSettings(),
    search=SearchSettings(prompts=160, at_once=4),
    dpo=DpoSettings(beta=0.05, learning_rate=3e-4, epochs=3.0, batch=8, loss_weights=(1.0, 1.0)),
    gate=GateSettings(prompts=96, batch=24),
)
QUICK = replace(
    FULL,
    annotations=160,
    logged_lists=16_000,
    test_prompts=64,
    minutes=12.0,
    ctr=CtrSettings(epochs=2),
    search=SearchSettings(prompts=40, at_once=4),
    dpo=DpoSettings(beta=0.05, learning_rate=3e-4, epochs=2.0, batch=8, loss_weights=(1.0, 1.0), min_pairs=8),
)


def choose_plan(*, quick: bool) -> Plan:
    """Return the whole run, or one that shows that everything works and little more."""
    return QUICK if quick else FULL
