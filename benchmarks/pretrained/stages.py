"""The stages of a run, by the product's own functions: few-shot, fine-tuning, click predictors, an iteration of Algorithm 1."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.pretrained.editors import draw_queries, log_lists, write_annotations
from benchmarks.pretrained.measures import Row, measure, measure_ceiling
from benchmarks.pretrained.plan import DECODING, TASK, Plan
from benchmarks.pretrained.policies import load_saved, measure_drift
from benchmarks.pretrained.report import DPO, FEW_SHOT, SFT, Results
from benchmarks.progress_log import log_progress
from queryloop.product.world import World
from serving.predictor.scorer import Predictor
from trainers.policy.aligners.dpo import train_dpo
from trainers.policy.cold_start.few_shot import choose_examples, save_few_shot
from trainers.policy.gate import decide, evaluate
from trainers.policy.pairs import describe_losses, make_pairs
from trainers.policy.search import search_candidates
from trainers.policy.sft import Annotation, train_sft
from trainers.predictor.examples import Part, take_part
from trainers.predictor.training import train_predictor

if TYPE_CHECKING:
    from serving.policy.engines import Generation
    from serving.policy.engines.transformers_engine import TransformersEngine

DEVICE = "auto"


@dataclass
class Run:
    """What the stages share; every model is written below `folder`."""

    plan: Plan
    world: World
    base: Path
    folder: Path
    queries: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_all(plan: Plan, world: World, base: Path, folder: Path) -> Results:
    """Run every stage and return what was measured."""
    started = time.monotonic()
    run = Run(plan, world, base, folder, tuple(draw_queries(world, plan.test_prompts, test=True)))
    annotations = write_annotations(world, plan.annotations)
    ask_few_shot(run, annotations)
    tune(run, annotations)
    train_predictors(run)
    align(run)
    drift = measure_drift(folder / "dpo", folder / "sft", run.queries)
    ceiling = measure_ceiling(world, run.queries)
    return Results(plan, run.queries, tuple(run.rows), ceiling, run.figures, drift, time.monotonic() - started)


def ask_few_shot(run: Run, annotations: Sequence[Annotation]) -> None:
    """Measure the base model as it is, shown some example lists in its prompts."""
    began = time.monotonic()
    (run.folder / "few-shot").mkdir()
    shown = choose_examples(annotations, run.plan.shots, seed=0).examples
    save_few_shot(run.base, shown, {TASK.name: TASK}, run.folder / "few-shot", DEVICE)
    _measure(run, FEW_SHOT, load_saved(run.folder / "few-shot", DEVICE), began)


def tune(run: Run, annotations: Sequence[Annotation]) -> None:
    """Learn the editors' lists with LoRA, and measure the policy that comes out."""
    began = time.monotonic()
    log_progress(f"{SFT}: {len(annotations)} lists")
    run.figures["sft"] = train_sft(run.base, annotations, {TASK.name: TASK}, run.folder / "sft", run.plan.sft, DEVICE)
    _measure(run, SFT, load_saved(run.folder / "sft", DEVICE), began)


def train_predictors(run: Run) -> None:
    """Train predictor and judge on the clicks that users made on lists by the editors."""
    log_progress(f"click predictors: {run.plan.logged_lists} lists")
    logged = log_lists(run.world, run.plan.logged_lists)
    parts: tuple[Part, ...] = ("predictor", "judge")
    for part in parts:
        (run.folder / part).mkdir()
        metrics = train_predictor(take_part(logged, part), run.folder / part, run.plan.ctr, run.plan.predictor)
        run.figures[part] = {name: metrics[name] for name in ("auc", "ece", "logloss", "lists", "seconds")}


def align(run: Run) -> None:
    """Search, make pairs, learn them by DPO, ask the gate, and measure the policy that comes out."""
    began = time.monotonic()
    champion = load_saved(run.folder / "sft", DEVICE)
    predictor, judge = Predictor.load(run.folder / "predictor"), Predictor.load(run.folder / "judge")
    asked = [champion.encode_prompt(TASK, query) for query in draw_queries(run.world, run.plan.search.prompts, test=False)]
    log_progress(f"candidate search: {len(asked)} prompts")
    candidates = search_candidates(champion, predictor, asked, run.plan.search)
    pairs = make_pairs(candidates, run.plan.search)
    log_progress(f"{DPO}: {len(pairs)} pairs; prompts without one: {describe_losses(candidates, run.plan.search)}")
    searched = time.monotonic() - began
    run.figures["dpo"] = train_dpo(run.folder / "sft", pairs, run.folder / "dpo", run.plan.dpo, DEVICE) | {
        "search_seconds": searched
    }
    challenger = load_saved(run.folder / "dpo", DEVICE)
    _measure(run, DPO, challenger, began)
    test = [champion.encode_prompt(TASK, query) for query in run.queries[: run.plan.gate.prompts]]
    before, after = (evaluate(one, predictor, judge, test, DECODING, run.plan.gate) for one in (champion, challenger))
    verdict = decide(before, after, run.plan.gate)
    run.figures["gate"] = {
        "passed": verdict.passed,
        "reasons": list(verdict.reasons),
        "aec_judge": [before.aec_judge, after.aec_judge],
    }


def _measure(run: Run, name: str, engine: TransformersEngine, began: float) -> None:
    log_progress(f"{name}: writing {len(run.queries)} lists")
    written = write_lists(engine, run.queries, run.plan.gate.batch)
    run.rows.append(measure(name, run.world, run.queries, written, time.monotonic() - began))


def write_lists(engine: TransformersEngine, queries: Sequence[str], at_once: int) -> list[Generation]:
    """Return a list for each query as serving draws it, its random numbers its own, whatever is written with it."""
    written: list[Generation] = []
    for start in range(0, len(queries), at_once):
        batch = [engine.encode_prompt(TASK, query) for query in queries[start : start + at_once]]
        written += engine.generate(batch, [replace(DECODING, seed=start + row) for row in range(len(batch))])
    return written
