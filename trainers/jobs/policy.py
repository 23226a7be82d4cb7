"""The job `policy`: a cold start from annotated lists, and from then on one alignment iteration each time (Algorithm 1, G12).

An iteration starts from the champion, searches better and worse lists for what users asked, aligns the policy with them, and
tests it at the gate. The challenger is published with the gate's record in any case, and promoted when it passed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.models_extra import require_models
from serving.policy.engines import Decoding
from serving.policy.prompts import Prompt, Prompter
from serving.releases import registry
from streams.runtime import artifacts
from trainers.jobs.ctr import newest_day
from trainers.jobs.outcomes import JobError, Outcome, Skipped
from trainers.jobs.settings import TrainerSettings
from trainers.policy.aligners.dpo import TooFewPairs, train_dpo
from trainers.policy.base import SCRATCH, check_base, make_base
from trainers.policy.gate import Measured, Verdict, decide, evaluate
from trainers.policy.pairs import Pair, describe_losses, make_pairs
from trainers.policy.prompts import ListCall, describe_calls, make_prompts, pick_test, pick_training, read_calls
from trainers.policy.search import search_candidates
from trainers.policy.sft import Annotation, annotation_texts, read_annotations, train_sft

if TYPE_CHECKING:
    from index.retrieve import Index
    from serving.policy.engines.transformers_engine import TransformersEngine
    from serving.predictor.scorer import Predictor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The newest artifacts that are released together with a policy."""

    predictor: Path | None
    judge: Path | None
    index: Path | None


@dataclass(frozen=True)
class Scorers:
    """The predictor, which chooses training lists, and the judge, by which the gate decides."""

    predictor: Predictor
    judge: Predictor


def run(settings: TrainerSettings) -> Outcome:
    """Run a cold start where nothing is live, else one iteration. Raises Skipped or JobError when something is missing."""
    require_models()
    champion = registry.read_rollout(settings.data.dir).champion
    if champion is None:
        return start_cold(settings)
    return iterate(settings, registry.read_release(settings.data.dir, champion))


def newest_parts(root: Path) -> Parts:
    """Return the newest published artifact of each kind, verified."""
    found = {kind: artifacts.latest(root / "artifacts", kind) for kind in ("predictor", "judge", "index")}
    return Parts(**{kind: artifact.path if artifact else None for kind, artifact in found.items()})


def start_cold(settings: TrainerSettings) -> Outcome:
    """Supervised fine-tuning of `policy.base` on `policy.annotations` (G3); the result goes live without a gate.

    Raises JobError where the annotations are missing."""
    path = settings.policy.annotations
    if path is None or not path.exists():
        raise JobError(
            f"policy.annotations = {str(path) if path else 'unset'}: the first policy learns from annotated "
            "lists; name a JSONL file with a task, query and items in each line"
        )
    if settings.policy.base != SCRATCH:
        check_base(settings.policy.base, settings.policy.list_form)
    annotations = read_annotations(path)
    base = _base(settings, annotations)
    meta: dict[str, Any] = {"start": "sft", "base": str(base), "annotations": len(annotations)}

    policy = settings.policy

    def fill(folder: Path) -> None:
        meta["metrics"] = train_sft(base, annotations, settings.tasks, folder, settings.sft, policy.device, policy.list_form)

    made = artifacts.publish(settings.data.dir / "artifacts", "policy", fill, meta)
    release = _publish(settings.data.dir, made.path, newest_parts(settings.data.dir), {}, {"job": "policy", "start": "sft"})
    registry.promote(settings.data.dir, release.id)
    figures = {"release": release.id, "promoted": True, "sft": meta["metrics"], "artifact": str(made.path)}
    return Outcome(f"{release.id} live after a cold start on {len(annotations)} annotated lists", figures)


def _base(settings: TrainerSettings, annotations: Sequence[Annotation]) -> str | Path:
    """Return the model to start from; for "scratch" a small one is made from the annotations' texts."""
    if settings.policy.base != SCRATCH:
        return settings.policy.base
    texts = annotation_texts(annotations, settings.tasks)

    def fill(folder: Path) -> None:
        make_base(texts, folder, settings.policy)

    return artifacts.publish(settings.data.dir / "artifacts", "base", fill, {"texts": len(texts)}).path


def iterate(settings: TrainerSettings, champion: registry.Release) -> Outcome:
    """Run one iteration from the champion: search, pairs, DPO, gate, release. Raises Skipped when something is missing."""
    root = settings.data.dir
    parts = newest_parts(root)
    scorers = _load_scorers(parts)
    calls = _read_calls(settings)
    usable = [one for one in calls if one.task in settings.tasks]
    index = _load_index(parts)
    seed = settings.search.seed + len(registry.list_releases(root))
    prompter = Prompter.load(champion.policy)
    training = make_prompts(pick_training(usable, settings.search.prompts, seed), settings.tasks, index, prompter)
    test = make_prompts(pick_test(usable, settings.gate.prompts), settings.tasks, index, prompter)
    _check_enough(settings, calls, training, test)
    pairs = _find_pairs(settings, champion, scorers.predictor, training, seed)
    policy = _align(settings, champion, pairs)
    verdict, gate = _judge(settings, champion.policy, policy.path, scorers, test)
    meta = {
        "job": "policy",
        "start": "dpo",
        "from": champion.id,
        "dpo": policy.meta["metrics"],
        "training_prompts": len(training),
    }
    release = _publish(root, policy.path, parts, gate, meta)
    _roll_out(root, release.id, verdict)
    figures = {
        "release": release.id,
        "promoted": verdict.passed,
        "gate": gate,
        "dpo": policy.meta["metrics"],
        "pairs": len(pairs),
    }
    return Outcome(_describe(release.id, champion.id, verdict, gate), figures)


def _load_scorers(parts: Parts) -> Scorers:
    from serving.predictor.scorer import Predictor

    missing = [name for name, part in (("predictor", parts.predictor), ("judge", parts.judge)) if part is None]
    if parts.predictor is None or parts.judge is None:
        raise Skipped(f"there is no {' and '.join(missing)} yet: run the job ctr first (queryloop run ctr)")
    return Scorers(Predictor.load(parts.predictor), Predictor.load(parts.judge))


def _load_index(parts: Parts) -> Index | None:
    from index.retrieve import Index

    return Index.load(parts.index) if parts.index is not None else None


def _load_engine(settings: TrainerSettings, policy: Path) -> TransformersEngine:
    from serving.policy.engines.transformers_engine import TransformersEngine

    return TransformersEngine.load(policy, settings.policy.device)


def _read_calls(settings: TrainerSettings) -> list[ListCall]:
    lake = settings.open_lake()
    return read_calls(lake, newest_day(lake) + timedelta(days=1), settings.ctr.days, settings.events.default_task)


def _check_enough(
    settings: TrainerSettings, calls: Sequence[ListCall], training: Sequence[Prompt], test: Sequence[Prompt]
) -> None:
    if not training or len(test) < 2:
        raise Skipped(
            f"too few different queries in the lake: {len(training)} prompts to learn from, at least 1 is needed, and "
            f"{len(test)} lists for the gate, at least 2 are. The last {settings.ctr.days} days (ctr.days) have "
            f"{describe_calls(calls, settings.tasks)}: one query in four"
        )


def _find_pairs(
    settings: TrainerSettings, champion: registry.Release, predictor: Predictor, prompts: Sequence[Prompt], seed: int
) -> list[Pair]:
    log.info("event=stage job=policy stage=search prompts=%d", len(prompts))
    search = settings.search.model_copy(update={"seed": seed})
    candidates = search_candidates(_load_engine(settings, champion.policy), predictor, prompts, search)
    pairs = make_pairs(candidates, search)
    if len(pairs) < settings.dpo.min_pairs:
        raise Skipped(
            f"{len(pairs)} pairs of {len(prompts)} prompts, dpo.min_pairs = {settings.dpo.min_pairs}: raise search.prompts, or "
            f"lower it. Prompts without a pair: {describe_losses(candidates, search)}"
        )
    return pairs


def _align(settings: TrainerSettings, champion: registry.Release, pairs: Sequence[Pair]) -> artifacts.Artifact:
    log.info("event=stage job=policy stage=dpo pairs=%d", len(pairs))
    meta: dict[str, Any] = {"start": "dpo", "from": champion.policy.name}

    def fill(folder: Path) -> None:
        meta["metrics"] = train_dpo(champion.policy, pairs, folder, settings.dpo, settings.policy.device)

    try:
        return artifacts.publish(settings.data.dir / "artifacts", "policy", fill, meta)
    except TooFewPairs as error:
        raise Skipped(str(error)) from error


def _judge(
    settings: TrainerSettings, champion: Path, challenger: Path, scorers: Scorers, test: Sequence[Prompt]
) -> tuple[Verdict, dict[str, Any]]:
    """Return the gate's verdict, and its record for manifest and ledger."""
    log.info("event=stage job=policy stage=gate prompts=%d", len(test))
    serving = settings.serving
    decoding = Decoding(serving.temperature, serving.top_p, redraws=serving.redraws)

    def measure(policy: Path) -> Measured:
        engine = _load_engine(settings, policy)
        return evaluate(engine, scorers.predictor, scorers.judge, test, decoding, settings.gate)

    before, after = measure(champion), measure(challenger)
    verdict = decide(before, after, settings.gate)
    return verdict, {
        "passed": verdict.passed,
        "reasons": list(verdict.reasons),
        "champion": before.record(),
        "challenger": after.record(),
    }


def _publish(root: Path, policy: Path, parts: Parts, gate: dict[str, Any], meta: dict[str, Any]) -> registry.Release:
    return registry.publish(
        root, policy=policy, predictor=parts.predictor, judge=parts.judge, index=parts.index, gate=gate, meta=meta
    )


def _roll_out(root: Path, release: str, verdict: Verdict) -> None:
    """Promote a challenger that passed; a refused one stays a release, which may be inspected or promoted by hand."""
    if verdict.passed:
        registry.promote(root, release)
        log.info("event=promoted release=%s", release)
    else:
        log.warning("event=refused release=%s reasons=%r", release, verdict.reasons)


def _describe(release: str, champion: str, verdict: Verdict, gate: dict[str, Any]) -> str:
    if not verdict.passed:
        return f"{release} refused: {'; '.join(verdict.reasons)}"
    before, after = gate["champion"]["aec_judge"], gate["challenger"]["aec_judge"]
    return f"{release} live instead of {champion}: AEC by the judge {before:.4f} -> {after:.4f}"
