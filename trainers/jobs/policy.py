"""The job `policy`: a cold start from annotated lists, and from then on one alignment iteration each time (Algorithm 1, G12).

A cold start is tested by a gate of its own (`trainers.policy.cold_start.gate`), since there are no clicks yet.

An iteration starts from the champion, searches better and worse lists for what users asked, aligns the policy with them, and
tests it at the gate. The challenger is published with the gate's record in any case, and promoted when it passed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.models_extra import require_models
from serving.policy.engines import Decoding
from serving.policy.engines.adapters import find_base
from serving.policy.prompts import Prompt, PromptEncoder, Prompter
from serving.releases import registry
from streams.runtime import artifacts
from trainers.jobs.cold_start import Start, choose_starts, fingerprint, make_first_policy
from trainers.jobs.ctr import newest_day
from trainers.jobs.outcomes import Outcome, Skipped
from trainers.jobs.run_options import RunOptions
from trainers.jobs.settings import TrainerSettings
from trainers.policy.aligners.dpo import TooFewPairs, train_dpo
from trainers.policy.base import choose_device
from trainers.policy.gate import Measured, Verdict, decide, evaluate
from trainers.policy.memory import check_stages, within_memory
from trainers.policy.pairs import Pair, describe_losses, make_pairs
from trainers.policy.prompts import ListCall, describe_calls, make_prompts, pick_test, pick_training, read_calls
from trainers.policy.ranks import choose_processes, train_in_ranks
from trainers.policy.search import search_candidates
from trainers.policy.stages import plan_iteration

if TYPE_CHECKING:
    from index.retrieve import Index
    from serving.policy.engines.transformers_engine import TransformersEngine
    from serving.predictor.scorer import Predictor

log = logging.getLogger(__name__)
NO_OPTIONS = RunOptions()
Ask = Callable[[PromptEncoder], list[Prompt]]
"""Makes the gate's prompts in the tokens of a policy."""


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


def run(settings: TrainerSettings, options: RunOptions = NO_OPTIONS) -> Outcome:
    """Run a cold start where nothing is live, else one iteration; with `from_base` a cold start beside the champion.

    With `force` a policy that a gate refused is promoted all the same. Raises Skipped or JobError when something is missing."""
    require_models()
    name = registry.read_rollout(settings.data.dir).champion
    champion = registry.read_release(settings.data.dir, name) if name is not None else None
    if champion is None or options.from_base:
        return start_anew(settings, champion, options)
    return iterate(settings, champion, options)


def start_anew(settings: TrainerSettings, champion: registry.Release | None, options: RunOptions) -> Outcome:
    """Make the first policies that `policy.cold_start` names, one after the other; each goes live when it passes its gate.

    Raises Skipped where the gate has refused the same before: the timetable asks again each day."""
    starts = choose_starts(settings, champion is not None)
    refused = {} if options.force or options.from_base else _find_refused(settings, starts)
    if len(refused) == len(starts):
        release = refused[starts[-1]]
        raise Skipped(
            f"{release.id} was refused, and base, annotations and settings are the same since (sections policy, sft, cold_start, "
            f"tasks): {'; '.join(release.gate['reasons'])}. --from-base makes it anew all the same, --force makes it live"
        )
    made = [start_cold(settings, champion, options, start) for start in starts if start not in refused]
    return Outcome("; then ".join(one.detail for one in made), made[-1].figures)


def _find_refused(settings: TrainerSettings, starts: Sequence[Start]) -> dict[Start, registry.Release]:
    """Return the releases of these starts that were made of the same and refused."""
    known = {one.meta.get("inputs"): one for one in registry.list_releases(settings.data.dir) if not one.gate.get("passed", True)}
    found = {start: known.get(fingerprint(settings, start)) for start in starts}
    return {start: release for start, release in found.items() if release is not None}


def newest_parts(root: Path) -> Parts:
    """Return the newest published artifact of each kind, verified."""
    found = {kind: artifacts.latest(root / "artifacts", kind) for kind in ("predictor", "judge", "index")}
    return Parts(**{kind: artifact.path if artifact else None for kind, artifact in found.items()})


def start_cold(settings: TrainerSettings, champion: registry.Release | None, options: RunOptions, start: Start) -> Outcome:
    """Make a first policy from base and annotations; it goes live when it passes the cold-start gate.

    Beside a champion it must also pass the ordinary gate, where there are a predictor and a judge."""
    root = settings.data.dir
    parts = newest_parts(root)
    compared = _plan_comparison(settings, parts, champion.policy) if champion is not None else None
    first = make_first_policy(settings, _load_index(parts), start)
    verdict, gate = first.verdict, first.gate()
    if champion is not None and compared is not None:
        # The cold-start gate has limits of its own for the length; a champion that writes too much must not be a measure.
        free = settings.model_copy(update={"gate": settings.gate.model_copy(update={"max_length_ratio": math.inf})})
        ordinary, record = _judge(free, champion.policy, first.policy.path, *compared)
        verdict = Verdict(verdict.passed and ordinary.passed, (*verdict.reasons, *ordinary.reasons))
        gate = {**gate, **record, "passed": verdict.passed, "reasons": list(verdict.reasons)}
    meta = {
        "job": "policy",
        "start": start,
        "inputs": fingerprint(settings, start),
        **({"beside": champion.id} if champion else {}),
        **_mark_forced(verdict, options),
    }
    release = _publish(root, first.policy.path, parts, gate, meta)
    promoted = _roll_out(root, release.id, verdict, options)
    metrics = first.policy.meta["metrics"]
    figures = {"release": release.id, "promoted": promoted, "gate": gate, start: metrics, "artifact": str(first.policy.path)}
    return Outcome(_describe_start(release.id, first.made, verdict, promoted), figures)


def _describe_start(release: str, made: str, verdict: Verdict, promoted: bool) -> str:
    if verdict.passed:
        return f"{release} live after {made}"
    refused = f"refused after {made}: {'; '.join(verdict.reasons)}"
    return f"{release} live by --force, though {refused}" if promoted else f"{release} {refused}"


def _plan_comparison(settings: TrainerSettings, parts: Parts, champion: Path) -> tuple[Scorers, Ask] | None:
    """Return what the ordinary gate needs, None without predictor or judge. Raises Skipped for too few queries in the lake."""
    if parts.predictor is None or parts.judge is None:
        return None
    calls = _read_calls(settings)
    index, picked = _load_index(parts), pick_test(calls, settings.gate.prompts)

    def ask(encoder: PromptEncoder) -> list[Prompt]:
        return make_prompts(picked, settings.tasks, index, encoder)

    test = ask(Prompter.load(champion))
    _check_enough(settings, calls, test, test)
    return _load_scorers(parts), ask


def _mark_forced(verdict: Verdict, options: RunOptions) -> dict[str, bool]:
    """Return the note in a release's meta that it was promoted although a gate refused it."""
    return {"forced": True} if options.force and not verdict.passed else {}


def iterate(settings: TrainerSettings, champion: registry.Release, options: RunOptions = NO_OPTIONS) -> Outcome:
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
    device = choose_device(settings.policy.device)
    stages = plan_iteration(champion.policy, [*training, *test], settings.search, settings.dpo, settings.gate, device)
    check_stages((stages.search, stages.dpo, stages.gate), device)
    check_stages((stages.merge,), choose_device("cpu"))
    processes = choose_processes(settings.policy.processes, device)  # refused before the search, not after it
    with within_memory(stages.search, device):
        pairs = _find_pairs(settings, champion, scorers.predictor, training, seed)
    with within_memory(stages.dpo, device):
        policy = _align(settings, champion, pairs, processes)
    with within_memory(stages.gate, device):
        verdict, gate = _judge(settings, champion.policy, policy.path, scorers, lambda _: test)
    meta = {
        "job": "policy",
        "start": "dpo",
        "from": champion.id,
        "dpo": policy.meta["metrics"],
        "training_prompts": len(training),
        **_mark_forced(verdict, options),
    }
    release = _publish(root, policy.path, parts, gate, meta)
    promoted = _roll_out(root, release.id, verdict, options)
    figures = {
        "release": release.id,
        "promoted": promoted,
        "gate": gate,
        "dpo": policy.meta["metrics"],
        "pairs": len(pairs),
    }
    return Outcome(_describe(release.id, champion.id, verdict, gate, promoted), figures)


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


def _align(settings: TrainerSettings, champion: registry.Release, pairs: Sequence[Pair], processes: int) -> artifacts.Artifact:
    log.info("event=stage job=policy stage=dpo pairs=%d", len(pairs))
    meta: dict[str, Any] = {"start": "dpo", "from": champion.policy.name}

    def fill(folder: Path) -> None:
        arguments = (champion.policy, pairs, folder, settings.dpo, settings.policy.device)
        meta["metrics"] = train_in_ranks(train_dpo, arguments, processes, choose_device(settings.policy.device))
        if base := find_base(folder):
            meta["base"] = str(base)

    try:
        return artifacts.publish(settings.data.dir / "artifacts", "policy", fill, meta)
    except TooFewPairs as error:
        raise Skipped(str(error)) from error


def _judge(
    settings: TrainerSettings, champion: Path, challenger: Path, scorers: Scorers, ask: Ask
) -> tuple[Verdict, dict[str, Any]]:
    """Return the gate's verdict, and its record for manifest and ledger. Each policy is asked in its own tokens."""
    log.info("event=stage job=policy stage=gate")
    serving = settings.serving
    decoding = Decoding(serving.temperature, serving.top_p, redraws=serving.redraws)

    def measure(policy: Path) -> Measured:
        engine = _load_engine(settings, policy)
        return evaluate(engine, scorers.predictor, scorers.judge, ask(engine), decoding, settings.gate)

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


def _roll_out(root: Path, release: str, verdict: Verdict, options: RunOptions) -> bool:
    """Promote a challenger that passed, or any with `force`; return whether it was.

    A refused one stays a release, which may be inspected or promoted by hand."""
    if verdict.passed or options.force:
        registry.promote(root, release, force=options.force)
        log.info("event=promoted release=%s forced=%s", release, not verdict.passed)
        return True
    log.warning("event=refused release=%s reasons=%r", release, verdict.reasons)
    return False


def _describe(release: str, champion: str, verdict: Verdict, gate: dict[str, Any], promoted: bool) -> str:
    if not verdict.passed:
        forced = "live by --force, though " if promoted else ""
        return f"{release} {forced}refused: {'; '.join(verdict.reasons)}"
    before, after = gate["champion"]["aec_judge"], gate["challenger"]["aec_judge"]
    return f"{release} live instead of {champion}: AEC by the judge {before:.4f} -> {after:.4f}"
