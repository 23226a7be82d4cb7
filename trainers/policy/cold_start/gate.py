"""The cold-start gate: a first policy goes live only when it writes lists that a person could be shown.

There are no clicks yet, so there is no judge. Held-out annotations and real queries are written as serving would, and measured
for what a policy does that did not learn: lists that do not keep the form by themselves, texts that repeat themselves, lists that
have nothing to do with their query, lists of another length than the annotated ones, a loss no lower than the base model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serving.policy.engines import Decoding, Engine, Generation
from serving.policy.lists import repair_items
from serving.policy.prompts import Prompt
from trainers.policy.cold_start.relatedness import Items, Relatedness, Similarity, measure_relatedness
from trainers.policy.cold_start.repetition import repeats_itself
from trainers.policy.gate import Verdict
from trainers.progress import track


class ColdStartSettings(BaseModel):
    """Section `cold_start`: what a first policy must show before it goes live (the cold-start gate)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_annotations: int = Field(
        default=40, ge=2, description="Annotations from which the gate can judge; with fewer it refuses."
    )
    held_out: float = Field(default=0.1, gt=0, le=0.5, description="Share of the annotations that is not learned but tested.")
    min_held_out: int = Field(default=16, ge=1, description="Annotations that are tested, at least (two fifths of all at most).")
    prompts: int = Field(default=64, ge=2, description="Lists that are written: held-out annotations, then the lake's queries.")
    batch: int = Field(default=16, ge=1, description="Prompts written at once.")
    max_forced: float = Field(
        default=0.5, ge=0, le=1, description="Share of lists in which the form had to be forced, or that are not well-formed."
    )
    max_repetitive: float = Field(default=0.05, ge=0, le=1, description="Share of texts that repeat themselves.")
    min_relatedness: float = Field(
        default=0.6,
        ge=0.5,
        le=1,
        description="Share of comparisons in which a list is nearer to its query than to another one; 0.5 asks nothing.",
    )
    max_length_ratio: float = Field(default=2.0, ge=1, description="Mean tokens, written to annotated lists or the reverse.")
    max_loss_ratio: float = Field(default=1.0, gt=0, description="Loss on held-out annotations, over that of the base model.")
    seed: int = Field(default=0, description="Of the held-out annotations and of the lists that are written.")


@dataclass(frozen=True)
class ColdMeasured:
    """A first policy on held-out annotations and real queries. Losses are nats a token; None where nothing was learned.

    `annotated_tokens`: None where there is no annotation to compare with."""

    annotations: int
    held_out: int
    real_queries: int
    forced: float
    repetitive: float
    relatedness: float
    relatedness_error: float
    relatedness_by: str
    mean_tokens: float
    annotated_tokens: float | None
    loss: float | None
    base_loss: float | None

    @property
    def learned(self) -> bool:
        """Whether the policy was trained, and not only shown examples."""
        return self.loss is not None

    def record(self) -> dict[str, float | str | None]:
        """Return the figures for manifest and ledger."""
        found = asdict(self)
        return {key: None if found[key] == float("inf") else found[key] for key in found}


def write_lists(engine: Engine, prompts: Sequence[Prompt], decoding: Decoding, settings: ColdStartSettings) -> list[Generation]:
    """Return one list a prompt, in order, each with random numbers of its own."""
    return [one for batch in _write(engine, prompts, decoding, settings) for one in batch]


def _write(
    engine: Engine, prompts: Sequence[Prompt], decoding: Decoding, settings: ColdStartSettings
) -> Iterator[list[Generation]]:
    starts = range(0, len(prompts), settings.batch)
    for start in track(starts, "cold-start gate: writing lists", total=len(starts)):
        batch = prompts[start : start + settings.batch]
        decodings = [replace(decoding, seed=settings.seed + start + row) for row in range(len(batch))]
        yield engine.generate(batch, decodings)


def was_forced(generation: Generation) -> bool:
    """Return whether a list would not have kept the form by itself."""
    return generation.forced > 0 or not generation.list.well_formed


def find_relatedness(
    prompts: Sequence[Prompt], lists: Sequence[Items], measures: Sequence[tuple[str, Similarity]], settings: ColdStartSettings
) -> Relatedness:
    """Return the first measure by which the lists depend on their queries, else the one that came nearest to it.

    No measure sees every relation, so one is enough; none of them is fooled by lists that ignore their query."""
    queries = [one.query for one in prompts]
    found: list[Relatedness] = []
    for by, near in measures:
        found.append(measure_relatedness(queries, lists, near, by))
        if found[-1].holds(settings.min_relatedness):
            break
    return next((one for one in found if one.holds(settings.min_relatedness)), max(found, key=lambda one: one.share))


def summarise(
    prompts: Sequence[Prompt],
    generations: Sequence[Generation],
    annotated_tokens: float | None,
    measures: Sequence[tuple[str, Similarity]],
    settings: ColdStartSettings,
) -> ColdMeasured:
    """Measure written lists; `annotated_tokens` is the mean length of annotated ones. Counts and losses are still missing."""
    lists = [repair_items(one.list.items, prompt.task.n) for prompt, one in zip(prompts, generations, strict=True)]
    texts = [text for one in generations for text in (*one.list.auxiliary, *one.list.items)]
    related = find_relatedness(prompts, lists, measures, settings)
    return ColdMeasured(
        annotations=0,
        held_out=0,
        real_queries=0,
        forced=float(np.mean([was_forced(one) for one in generations])),
        repetitive=float(np.mean([repeats_itself(text) for text in texts])) if texts else 0.0,
        relatedness=related.share,
        relatedness_error=related.error,
        relatedness_by=related.by,
        mean_tokens=float(np.mean([len(one.token_ids) for one in generations])),
        annotated_tokens=annotated_tokens,
        loss=None,
        base_loss=None,
    )


def decide_cold(measured: ColdMeasured, settings: ColdStartSettings) -> Verdict:
    """Compare the figures with the limits; each broken limit is a reason that says what to change."""
    rules = (_few, _forced, _repetitive, _unrelated, _length, _unlearned)
    reasons = tuple(reason for rule in rules if (reason := rule(measured, settings)))
    return Verdict(not reasons, reasons)


def _advise(measured: ColdMeasured, trained: str) -> str:
    """Return what to change: `trained` about a policy that was trained, something else about one that is only shown examples."""
    if measured.learned:
        return trained
    return "raise policy.shots, take another policy.base, or let it learn annotations (policy.cold_start = 'sft')"


def _few(measured: ColdMeasured, settings: ColdStartSettings) -> str | None:
    if not measured.learned or measured.annotations >= settings.min_annotations:
        return None  # nothing learned: all annotations but the few that are shown can be tested with
    return (
        f"too few annotations to judge: {measured.annotations}, at least {settings.min_annotations} needed "
        f"(cold_start.min_annotations), of which {measured.held_out} are tested: add lists to policy.annotations"
    )


def _forced(measured: ColdMeasured, settings: ColdStartSettings) -> str | None:
    if measured.forced <= settings.max_forced:
        return None
    change = _advise(measured, "add annotations, or raise sft.epochs or sft.learning_rate")
    verb = "learned" if measured.learned else "followed"
    return (
        f"the form is not {verb}: {measured.forced:.1%} of lists do not keep it by "
        f"themselves, at most {settings.max_forced:.1%} allowed (cold_start.max_forced): {change}"
    )


def _repetitive(measured: ColdMeasured, settings: ColdStartSettings) -> str | None:
    if measured.repetitive <= settings.max_repetitive:
        return None
    change = _advise(measured, "lower sft.learning_rate, add annotations, or take another policy.base")
    return (
        f"texts repeat themselves: {measured.repetitive:.1%} of them, at most {settings.max_repetitive:.1%} allowed "
        f"(cold_start.max_repetitive): {change}"
    )


def _unrelated(measured: ColdMeasured, settings: ColdStartSettings) -> str | None:
    found = Relatedness(measured.relatedness, measured.relatedness_error, measured.relatedness_by)
    if found.holds(settings.min_relatedness):
        return None
    change = _advise(measured, "add annotations, raise sft.epochs, or take another policy.base")
    return (
        f"lists have little to do with their queries: nearer to their own query than to another user's in {found.share:.1%} of "
        f"comparisons by {found.by} (standard error {found.error:.1%}), at least {settings.min_relatedness:.1%} needed and three "
        f"standard errors more than the 50 % of chance (cold_start.min_relatedness): check that annotated items belong to their "
        f"queries, {change}"
    )


def _length(measured: ColdMeasured, settings: ColdStartSettings) -> str | None:
    if measured.annotated_tokens is None:
        return None
    ratio = measured.mean_tokens / max(measured.annotated_tokens, 1.0)
    if 1 / settings.max_length_ratio <= ratio <= settings.max_length_ratio:
        return None
    change = _advise(measured, "raise sft.epochs, or add annotations")
    return (
        f"lists have another length than annotated ones: {measured.mean_tokens:.1f} tokens against "
        f"{measured.annotated_tokens:.1f}, ratio {ratio:.2f}, allowed {settings.max_length_ratio:.2f} either way "
        f"(cold_start.max_length_ratio): {change}"
    )


def _unlearned(measured: ColdMeasured, settings: ColdStartSettings) -> str | None:
    if measured.loss is None or measured.base_loss is None or measured.loss <= settings.max_loss_ratio * measured.base_loss:
        return None
    return (
        f"nothing was learned that holds for unseen lists: held-out loss {measured.loss:.3f} against {measured.base_loss:.3f} of "
        "the base: add annotations, or lower sft.learning_rate or sft.epochs"
    )
