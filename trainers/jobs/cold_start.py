"""The first policy: made from `policy.base` and `policy.annotations`, and tested on annotations that it did not learn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.policy.engines import Decoding
from serving.policy.prompts import Prompt, PromptEncoder, Prompter
from streams.events.normal_form import normalise
from streams.lake.reader import days
from streams.runtime import artifacts
from trainers.jobs.outcomes import JobError
from trainers.jobs.settings import TrainerSettings
from trainers.policy.base import SCRATCH, check_base, choose_device, make_base
from trainers.policy.cold_start.gate import ColdMeasured, decide_cold, summarise, write_lists
from trainers.policy.cold_start.held_out import measure_loss, split_annotations
from trainers.policy.cold_start.relatedness import Similarity, compare_characters, compare_likelihood, compare_vectors
from trainers.policy.gate import Verdict
from trainers.policy.memory import within_memory
from trainers.policy.prompts import ListCall, make_prompts, read_calls
from trainers.policy.ranks import choose_processes, train_in_ranks
from trainers.policy.sft import Annotation, annotation_texts, encode_examples, read_annotations, train_sft
from trainers.policy.stages import plan_cold_start

if TYPE_CHECKING:
    from index.retrieve import Index

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FirstPolicy:
    """A published policy that no clicks have shaped, with the cold-start gate's verdict and record."""

    policy: artifacts.Artifact
    verdict: Verdict
    measured: ColdMeasured

    def gate(self) -> dict[str, Any]:
        """Return the gate's record for manifest and ledger."""
        return {"passed": self.verdict.passed, "reasons": list(self.verdict.reasons), "cold_start": self.measured.record()}


def make_first_policy(settings: TrainerSettings, index: Index | None) -> FirstPolicy:
    """Teach `policy.base` the annotated lists (G3), publish the policy, and test it.

    Raises JobError where the annotations are missing, BaseFault for a base that cannot be used: before any training."""
    if settings.policy.base != SCRATCH:
        check_base(settings.policy.base, settings.policy.list_form)
    annotations = _read_annotations(settings)
    gate = settings.cold_start
    taught, tested = split_annotations(annotations, gate.held_out, gate.min_held_out, gate.seed)
    base, device = _base(settings, taught), choose_device(settings.policy.device)
    stage = plan_cold_start(base, taught, settings.tasks, settings.sft, device, settings.policy.list_form)
    meta: dict[str, Any] = {"start": "sft", "base": str(base), "annotations": len(annotations), "held_out": len(tested)}

    chosen = settings.policy
    processes = choose_processes(chosen.processes, device)

    def fill(folder: Path) -> None:
        arguments = (base, taught, settings.tasks, folder, settings.sft, chosen.device, chosen.list_form)
        meta["metrics"] = train_in_ranks(train_sft, arguments, processes, device)

    with within_memory(stage, device):
        policy = artifacts.publish(settings.data.dir / "artifacts", "policy", fill, meta)
    measured = replace(_measure(settings, policy.path, base, tested, index), annotations=len(annotations))
    return FirstPolicy(policy, decide_cold(measured, gate), measured)


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
    settings: TrainerSettings, policy: Path, base: str | Path, tested: Sequence[Annotation], index: Index | None
) -> ColdMeasured:
    """Write lists for held-out annotations and real queries as serving would, and measure them."""
    from serving.policy.engines.transformers_engine import TransformersEngine

    serving, gate, device = settings.serving, settings.cold_start, settings.policy.device
    engine = TransformersEngine.load(policy, device)
    asked = [_prompt(one, settings, engine) for one in tested[: gate.prompts]]
    real = make_prompts(_read_real(settings, gate.prompts - len(asked)), settings.tasks, index, engine)
    log.info("event=stage job=policy stage=cold_gate held_out=%d real_queries=%d", len(asked), len(real))
    prompts = [*asked, *real]
    generations = write_lists(engine, prompts, Decoding(serving.temperature, serving.top_p, redraws=serving.redraws), gate)
    lengths = [len(one.response) for one in encode_examples(tested, settings.tasks, Prompter.load(policy))]
    del engine
    measures = _find_measures(settings, index)
    measured = summarise(prompts, generations, sum(lengths) / len(lengths), measures, gate)
    form = settings.policy.list_form
    losses = [measure_loss(one, tested, settings.tasks, device, form) for one in (policy, base)]
    return replace(measured, held_out=len(tested), real_queries=len(real), loss=losses[0], base_loss=losses[1])


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
