"""The gate: a new policy goes live only when the judge finds it better and its lists keep their form.

The predictor that chose the training pairs overrates what it chose (G15), so the verdict rests on the judge, a second
predictor trained on other sessions. What a predictor cannot see (broken format, lists that grow, near-duplicates) has
limits of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from serving.policy.engines import Decoding, Engine, Generation
from serving.policy.lists import find_duplicates, repair_items
from serving.policy.prompts import Prompt
from trainers.policy.search import Scorer, batch_rows, reward_lists
from trainers.progress import track


class GateSettings(BaseModel):
    """Section `gate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(default=1000, ge=2, description="Size of the test set of one decision.")
    batch: int = Field(default=64, ge=1, description="Prompts written at once.")
    z: float = Field(default=1.64, ge=0, description="Standard errors by which the judge must find the challenger better.")
    min_gain: float = Field(default=0.0, ge=0, lt=1, description="Gain in AEC that the judge must see at least.")
    min_well_formed: float = Field(default=0.95, ge=0, le=1, description="Share of lists that keep the format.")
    max_length_ratio: float = Field(default=1.25, ge=1, description="Mean tokens, challenger to champion or the reverse.")
    max_forced: float = Field(default=0.5, ge=0, le=1, description="Share of lists in which the grammar had to change a draw.")
    max_duplicate_rate: float = Field(default=0.1, ge=0, le=1, description="Share of lists in which two items overlap.")
    overlap: float = Field(default=0.6, gt=0, le=1, description="Character 3-gram Jaccard from which two items overlap.")
    seed: int = Field(default=0, description="Of the lists that are written for the measurement.")


@dataclass(frozen=True)
class Measured:
    """One policy on the test prompts. AEC is the mean reward of its lists (eq. 3 or 4) by predictor and by judge; `forced` is the
    share of lists in which the grammar changed a draw."""

    aec_predictor: float
    aec_judge: float
    well_formed: float
    forced: float
    mean_tokens: float
    duplicate_rate: float
    prompts: int
    judged: tuple[float, ...] = field(repr=False, default=())  # the judge's reward of each prompt's list, in order

    def record(self) -> dict[str, float]:
        """Return the figures for manifest and ledger, without the single rewards."""
        return {key: value for key, value in asdict(self).items() if key != "judged"}


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger passed, and every reason why not."""

    passed: bool
    reasons: tuple[str, ...]


def evaluate(
    engine: Engine, predictor: Scorer, judge: Scorer, prompts: Sequence[Prompt], decoding: Decoding, settings: GateSettings
) -> Measured:
    """Write one list a prompt as serving would, and measure them. A malformed list's reward is that of the items
    serving would still show. Raises ValueError without prompts."""
    if not prompts:
        raise ValueError("the gate needs prompts: there is no impression of a mature day to take them from")
    judged = [0.0] * len(prompts)
    predicted = [0.0] * len(prompts)
    generations: list[Generation] = []
    for rows, batch, written in _write(engine, prompts, decoding, settings):
        lists = [repair_items(one.list.items, prompt.task.n) for prompt, one in zip(batch, written, strict=True)]
        for row, by_predictor, by_judge in zip(
            rows, reward_lists(predictor, batch, lists), reward_lists(judge, batch, lists), strict=True
        ):
            predicted[row], judged[row] = by_predictor, by_judge
        generations.extend(written)
    return _summarise(generations, predicted, judged, settings)


def _write(
    engine: Engine, prompts: Sequence[Prompt], decoding: Decoding, settings: GateSettings
) -> Iterator[tuple[list[int], list[Prompt], list[Generation]]]:
    """Yield batches of prompts with their lists; each prompt has its own random numbers, the same for every policy."""
    batches = list(batch_rows(prompts, settings.batch))
    for rows in track(batches, "gate: writing the test lists", total=len(batches)):
        batch = [prompts[row] for row in rows]
        decodings = [replace(decoding, seed=settings.seed + row) for row in rows]
        yield rows, batch, engine.generate(batch, decodings)


def _summarise(
    generations: Sequence[Generation], predicted: Sequence[float], judged: Sequence[float], settings: GateSettings
) -> Measured:
    return Measured(
        aec_predictor=float(np.mean(predicted)),
        aec_judge=float(np.mean(judged)),
        well_formed=float(np.mean([one.list.well_formed for one in generations])),
        forced=float(np.mean([one.forced > 0 for one in generations])),
        mean_tokens=float(np.mean([len(one.token_ids) for one in generations])),
        duplicate_rate=float(np.mean([bool(find_duplicates(one.list.items, settings.overlap)) for one in generations])),
        prompts=len(generations),
        judged=tuple(judged),
    )


def decide(champion: Measured, challenger: Measured, settings: GateSettings) -> Verdict:
    """Compare the two on the same prompts; each broken limit is a reason."""
    reasons = [
        reason
        for reason in (
            _worse(champion, challenger, settings),
            _malformed(challenger, settings),
            _forced(challenger, settings),
            _drifted(champion, challenger, settings),
            _repetitive(challenger, settings),
        )
        if reason
    ]
    return Verdict(not reasons, tuple(reasons))


def paired_gain(champion: Sequence[float], challenger: Sequence[float]) -> tuple[float, float]:
    """Return the mean gain a prompt and its standard error. Pairing removes what makes one prompt's lists better than another's.

    Raises ValueError where the two were not measured on the same number of prompts, two at least."""
    if len(champion) != len(challenger) or len(champion) < 2:
        raise ValueError(f"judged on {len(champion)} and {len(challenger)} prompts; the same two or more are needed")
    gain = np.asarray(challenger) - np.asarray(champion)
    return float(gain.mean()), float(gain.std(ddof=1) / math.sqrt(len(gain)))


def _worse(champion: Measured, challenger: Measured, settings: GateSettings) -> str | None:
    gain, error = paired_gain(champion.judged, challenger.judged)
    needed = max(settings.min_gain, settings.z * error)
    if gain > needed:
        return None
    return (
        f"not better by the judge: AEC {challenger.aec_judge:.4f} against {champion.aec_judge:.4f}, "
        f"gain {gain:+.4f}, more than {needed:.4f} needed"
    )


def _malformed(challenger: Measured, settings: GateSettings) -> str | None:
    if challenger.well_formed >= settings.min_well_formed:
        return None
    return f"list format broken: {challenger.well_formed:.1%} well-formed, at least {settings.min_well_formed:.1%} needed"


def _forced(challenger: Measured, settings: GateSettings) -> str | None:
    if challenger.forced <= settings.max_forced:
        return None
    return (
        f"form forgotten: the grammar had to change a draw in {challenger.forced:.1%} of lists, at most "
        f"{settings.max_forced:.1%} allowed; more annotations or a lower learning rate may help"
    )


def _drifted(champion: Measured, challenger: Measured, settings: GateSettings) -> str | None:
    ratio = challenger.mean_tokens / max(champion.mean_tokens, 1.0)
    if 1 / settings.max_length_ratio <= ratio <= settings.max_length_ratio:
        return None
    return (
        f"length drifted: {challenger.mean_tokens:.1f} tokens a list against {champion.mean_tokens:.1f}, "
        f"ratio {ratio:.2f}, allowed {settings.max_length_ratio:.2f} either way"
    )


def _repetitive(challenger: Measured, settings: GateSettings) -> str | None:
    if challenger.duplicate_rate <= settings.max_duplicate_rate:
        return None
    return (
        f"lists repeat themselves: {challenger.duplicate_rate:.1%} of lists have overlapping items, "
        f"at most {settings.max_duplicate_rate:.1%} allowed"
    )
