"""The first policy: made from `policy.base` and `policy.annotations`, and tested on annotations that it did not see.

`sft` trains the base on them; `prompt` shows some in every prompt, so that an instruct model answers without any training.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serving.policy.engines import Decoding
from serving.policy.prompts import Prompt, PromptEncoder, Prompter
from streams.events.normal_form import normalise
from streams.lake.reader import days
from streams.runtime import artifacts
from trainers.jobs.outcomes import JobError, Skipped
from trainers.jobs.settings import TrainerSettings
from trainers.policy.base import SCRATCH, check_base, choose_device, make_base
from trainers.policy.cold_start.few_shot import choose_examples, save_few_shot
from trainers.policy.cold_start.gate import ColdMeasured, decide_cold, summarise, write_lists
from trainers.policy.cold_start.held_out import measure_loss, split_annotations
from trainers.policy.cold_start.relatedness import Similarity, compare_characters, compare_likelihood, compare_vectors
from trainers.policy.gate import Verdict
from trainers.policy.memory import within_memory
from trainers.policy.prompts import ListCall, make_prompts, read_calls
from trainers.policy.ranks import choose_processes, train_in_ranks
from trainers.policy.sft import Annotation, annotation_texts, check_annotations, encode_examples, read_annotations, train_sft
from trainers.policy.stages import plan_cold_gate, plan_cold_start

if TYPE_CHECKING:
    from index.retrieve import Index

log = logging.getLogger(__name__)

Start = Literal["sft", "prompt"]


@dataclass(frozen=True)
class FirstPolicy:
    """A published policy that no clicks have shaped, with the cold-start gate's verdict and record. `made`: how, for people."""

    policy: artifacts.Artifact
    verdict: Verdict
    measured: ColdMeasured
    made: str

    def gate(self) -> dict[str, Any]:
        """Return the gate's record for manifest and ledger."""
        return {"passed": self.verdict.passed, "reasons": list(self.verdict.reasons), "cold_start": self.measured.record()}


def choose_starts(settings: TrainerSettings, beside: bool) -> tuple[Start, ...]:
    """Return the starts to make, in turn. `beside` a champion a few-shot policy, if wanted first, has no purpose any more."""
    chosen = settings.policy.cold_start
    if chosen == "auto":
        return ("prompt",) if settings.policy.annotations is None else ("sft",)
    if chosen == "both":
        return ("sft",) if beside else ("prompt", "sft")
    return (chosen,)


def fingerprint(settings: TrainerSettings, start: Start) -> str:
    """Return a digest of what a first policy is made of: the settings that shape it, and the annotations."""
    path = settings.policy.annotations
    texts = artifacts.digest(path) if path is not None and path.exists() else None
    sections = [one.model_dump(mode="json") for one in (settings.policy, settings.sft, settings.cold_start)]
    tasks = {name: one.model_dump(mode="json") for name, one in settings.tasks.items()}
    made_of = [start, texts, sections, tasks]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def make_first_policy(settings: TrainerSettings, index: Index | None, start: Start) -> FirstPolicy:
    """Make a policy of `policy.base`, publish and test it.

    Raises JobError or Skipped where lists to learn from or to test with are missing, BaseFault for a base that cannot be used:
    before any training."""
    make = _teach if start == "sft" else _show
    policy, measured, made = make(settings, index)
    return FirstPolicy(policy, decide_cold(measured, settings.cold_start), measured, made)


_Made = tuple[artifacts.Artifact, ColdMeasured, str]
"""The policy, what was measured of it, and in words how it was made."""


def _teach(settings: TrainerSettings, index: Index | None) -> _Made:
    """Teach the base the annotated lists (G3)."""
    annotations = _read_annotations(settings)
    gate, chosen = settings.cold_start, settings.policy
    taught, tested = split_annotations(annotations, gate.held_out, gate.min_held_out, gate.seed)
    if chosen.base != SCRATCH:
        check_base(chosen.base, chosen.list_form)
    base, device = _base(settings, taught), choose_device(chosen.device)
    stage = plan_cold_start(base, taught, settings.tasks, settings.sft, device, chosen.list_form)
    meta: dict[str, Any] = {"start": "sft", "base": str(base), "annotations": len(annotations), "held_out": len(tested)}
    processes = choose_processes(chosen.processes, device)

    def fill(folder: Path) -> None:
        arguments = (base, taught, settings.tasks, folder, settings.sft, chosen.device, chosen.list_form)
        meta["metrics"] = train_in_ranks(train_sft, arguments, processes, device)

    with within_memory(stage, device):
        policy = artifacts.publish(settings.data.dir / "artifacts", "policy", fill, meta)
    measured = _measure(settings, policy.path, tested, _read_real(settings, gate.prompts - len(tested)), index)
    losses = [measure_loss(one, tested, settings.tasks, chosen.device, chosen.list_form) for one in (policy.path, base)]
    measured = replace(measured, annotations=len(annotations), loss=losses[0], base_loss=losses[1])
    return policy, measured, f"a cold start on {len(annotations)} annotated lists"


def _show(settings: TrainerSettings, index: Index | None) -> _Made:
    """Take the base as it is, and show it `policy.shots` annotated lists in every prompt."""
    chosen, gate = settings.policy, settings.cold_start
    if chosen.base == SCRATCH:
        raise JobError(
            "policy.cold_start = 'prompt': a base made from scratch knows no language; name a policy.base, or say 'sft'"
        )
    annotations = _read_annotations(settings) if chosen.annotations else []
    check_annotations(annotations, settings.tasks)
    shown = choose_examples(annotations, chosen.shots, gate.seed)
    real = _read_real(settings, gate.prompts - len(shown.tested))
    if (found := len(shown.tested) + len(real)) < gate.min_held_out:
        raise Skipped(
            f"{len(shown.tested)} annotations that are not shown and {len(real)} different queries in the lake: {found} lists to "
            f"test with, at least {gate.min_held_out} are needed (cold_start.min_held_out): add lists to policy.annotations"
        )
    check_base(chosen.base, chosen.list_form)
    meta: dict[str, Any] = {"start": "prompt", "base": chosen.base, "annotations": len(annotations)}

    def fill(folder: Path) -> None:
        meta["metrics"] = save_few_shot(chosen.base, shown.examples, settings.tasks, folder, chosen.device, chosen.list_form)

    policy = artifacts.publish(settings.data.dir / "artifacts", "policy", fill, meta)
    measured = _measure(settings, policy.path, shown.tested, real, index)
    made = f"a start without training, {len(shown.examples)} annotated lists in its prompts"
    return policy, replace(measured, annotations=len(annotations)), made


def _read_annotations(settings: TrainerSettings) -> list[Annotation]:
    path = settings.policy.annotations
    if path is None or not path.exists():
        raise JobError(
            f"policy.annotations = {str(path) if path else 'unset'}: the first policy learns from annotated "
            "lists; name a JSONL file with a task, query and items in each line"
        )
    annotations = read_annotations(path)
    if len(annotations) < 2:
        raise JobError(
            f"{path}: one annotation; some are learned and others tested, so {settings.cold_start.min_annotations} are needed"
        )
    return annotations


def _base(settings: TrainerSettings, annotations: Sequence[Annotation]) -> str | Path:
    """Return the model to start from; for "scratch" a small one is made from the annotations' texts."""
    if settings.policy.base != SCRATCH:
        return settings.policy.base
    texts = annotation_texts(annotations, settings.tasks)

    def fill(folder: Path) -> None:
        make_base(texts, folder, settings.policy)

    return artifacts.publish(settings.data.dir / "artifacts", "base", fill, {"texts": len(texts)}).path


def _measure(
    settings: TrainerSettings, policy: Path, tested: Sequence[Annotation], calls: Sequence[ListCall], index: Index | None
) -> ColdMeasured:
    """Write lists for annotations and real queries as serving would, and measure them."""
    from serving.policy.engines.transformers_engine import TransformersEngine

    serving, gate = settings.serving, settings.cold_start
    prompter, device = Prompter.load(policy), choose_device(settings.policy.device)
    asked = [_prompt(one, settings, prompter) for one in tested[: gate.prompts]]
    real = make_prompts(calls, settings.tasks, index, prompter)
    log.info("event=stage job=policy stage=cold_gate held_out=%d real_queries=%d", len(asked), len(real))
    prompts, decoding = [*asked, *real], Decoding(serving.temperature, serving.top_p, redraws=serving.redraws)
    with within_memory(plan_cold_gate(policy, prompts, gate, device), device):
        generations = write_lists(TransformersEngine.load(policy, str(device)), prompts, decoding, gate)
    lengths = [len(one.response) for one in encode_examples(tested, settings.tasks, prompter)]
    mean = sum(lengths) / len(lengths) if lengths else None
    measured = summarise(prompts, generations, mean, _find_measures(settings, index), gate)
    return replace(measured, held_out=len(tested), real_queries=len(real))


def _prompt(one: Annotation, settings: TrainerSettings, encoder: PromptEncoder) -> Prompt:
    return encoder.encode_prompt(settings.tasks[one.task], one.query, one.related, one.session, one.response)


def _read_real(settings: TrainerSettings, count: int) -> list[ListCall]:
    """Return up to `count` of the newest calls for lists in the lake, of different queries; none where it has no day yet."""
    lake = settings.open_lake()
    found = days(lake)
    if not found or count <= 0:
        return []
    calls = read_calls(lake, found[-1] + timedelta(days=1), settings.ctr.days, settings.events.default_task)
    newest = {(one.task, normalise(one.query)): one for one in calls if one.task in settings.tasks}
    return list(newest.values())[-count:]


def _find_measures(settings: TrainerSettings, index: Index | None) -> list[tuple[str, Similarity]]:
    """Return how lists are compared with queries, the cheapest first; a base made from scratch knows nothing by itself."""
    measures: list[tuple[str, Similarity]] = [("shared letters", compare_characters)]
    if index is not None and len(index.dictionary):
        measures.append(("the index's encoder", compare_vectors(index.encoder)))
    if settings.policy.base != SCRATCH:
        measures.append(("the base model", compare_likelihood(settings.policy.base, settings.policy.device)))
    return measures
