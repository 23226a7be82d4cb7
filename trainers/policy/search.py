"""Algorithm 1's search: for each prompt the lists of the policy that the predictor rates best and worst.

It is a beam search over whole queries instead of tokens: at step k every partial list is continued with |C| queries drawn from
the policy, each longer list is rated by eq. 3 or 4, and the best B are kept (G9). It uses serving's own engine and prompts, so
the lists are those that serving would write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.policy.engines import Decoding, Generation
from serving.policy.list_form import ListForm
from serving.policy.lists import RecommendedList, is_duplicate
from serving.policy.prompts import Prompt
from serving.predictor.scorer import reward
from streams.events.normal_form import normalise
from trainers.progress import track

if TYPE_CHECKING:
    from serving.policy.engines.search_state import Expansion, SearchState


class SearchSettings(BaseModel):
    """Section `search`: sizes of Algorithm 1 and the overlap filter of its lists."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int = Field(default=2000, ge=1, description="Prompts of one iteration, taken from the lake.")
    at_once: int = Field(default=16, ge=1, description="Prompts searched together.")
    beam: int = Field(default=4, ge=1, description="B: partial lists kept a step.")
    candidates: int = Field(default=8, ge=1, description="|C|: next queries drawn for each partial list.")
    chosen: int = Field(default=4, ge=1, description="N_c: best lists kept, at most `beam`.")
    rejected: int = Field(default=4, ge=1, description="N_r: worst lists kept, at most `budget`.")
    budget: int = Field(default=16, ge=1, description="Lists drawn at random, of which the worst are kept.")
    temperature: float = Field(default=1.0, gt=0, le=10, description="Of both draws.")
    top_p: float = Field(default=1.0, gt=0, le=1, description="Of both draws.")
    redraws: int = Field(default=8, ge=0, le=64, description="Times that an item which repeats an earlier one is drawn anew.")
    filter_overlap: bool = Field(default=True, description="Drop chosen lists in which two queries overlap (G10).")
    overlap: float = Field(default=0.6, gt=0, le=1, description="Character 3-gram Jaccard from which two queries overlap.")
    min_gain: float = Field(default=0.0, ge=0, lt=1, description="A pair's rewards must differ by more than this.")
    seed: int = Field(default=0, description="Of the draws.")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        for part, whole in (("chosen", "beam"), ("rejected", "budget")):
            if getattr(self, part) > getattr(self, whole):
                raise ValueError(f"search.{part} = {getattr(self, part)} is more than search.{whole} = {getattr(self, whole)}")
        return self


@dataclass(frozen=True)
class ScoredList:
    """A list, its token ids up to and with EOS, and its reward by eq. 3 or 4."""

    list: RecommendedList
    token_ids: tuple[int, ...]
    reward: float


@dataclass(frozen=True)
class Candidates:
    """Y_chosen, best first, and Y_rejected, worst first, of one prompt; either may be empty."""

    prompt: Prompt
    chosen: tuple[ScoredList, ...]
    rejected: tuple[ScoredList, ...]


class Scorer(Protocol):
    """A predictor or a judge: click probabilities [N] of each list's positions."""

    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> Sequence[npt.NDArray[np.float64]]: ...


class SearchEngine(Protocol):
    """What the search uses of an engine (`serving.policy.engines.transformers_engine`)."""

    form: ListForm

    def generate(self, prompts: Sequence[Prompt], decoding: Decoding, samples: int = 1) -> list[Generation]: ...
    def begin(self, prompts: Sequence[Prompt]) -> SearchState: ...
    def expand(self, state: SearchState, m: int, decoding: Decoding) -> Expansion: ...
    def select(self, expansion: Expansion, chosen: Sequence[int]) -> SearchState: ...


@dataclass(frozen=True)
class _Partial:
    """A partial list: continuation `index` of an expansion for prompt `prompt`; each item's token ids end with <SEP>."""

    index: int
    prompt: int
    items: tuple[str, ...]
    auxiliary: tuple[str, ...]
    token_ids: tuple[int, ...]


def search_candidates(
    engine: SearchEngine, predictor: Scorer, prompts: Sequence[Prompt], settings: SearchSettings
) -> list[Candidates]:
    """Return best and worst lists of every prompt, in the prompts' order, `at_once` prompts of one task at a time."""
    found: dict[int, Candidates] = {}
    batches = list(batch_rows(prompts, settings.at_once))
    for number, rows in enumerate(track(batches, "candidate search", total=len(batches))):
        batch = [prompts[row] for row in rows]
        seed = settings.seed + number * 1_000_003
        chosen = search_chosen(engine, predictor, batch, settings, seed)
        rejected = draw_rejected(engine, predictor, batch, settings, seed)
        for row, prompt, best, worst in zip(rows, batch, chosen, rejected, strict=True):
            found[row] = Candidates(prompt, best, worst)
    return [found[row] for row in range(len(prompts))]


def batch_rows(prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
    """Yield the positions of the prompts in batches of at most `size`, each of one task."""
    by_task: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        by_task.setdefault(prompt.task.name, []).append(row)
    for rows in by_task.values():
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def reward_lists(predictor: Scorer, prompts: Sequence[Prompt], lists: Sequence[Sequence[str]]) -> list[float]:
    """Return the reward of each list for its prompt by the prompt's task (eq. 3 or 4); 0 for an empty list."""
    rewards = [0.0] * len(lists)
    rows = [row for row, items in enumerate(lists) if items]
    if rows:
        scored = predictor.score([prompts[row].query for row in rows], [lists[row] for row in rows])
        for row, probabilities in zip(rows, scored, strict=True):
            rewards[row] = float(reward(probabilities, prompts[row].task.reward))
    return rewards


def search_chosen(
    engine: SearchEngine, predictor: Scorer, prompts: Sequence[Prompt], settings: SearchSettings, seed: int
) -> list[tuple[ScoredList, ...]]:
    """Return Y_chosen of each prompt, all of one task: the `chosen` best lists of the beam after its last step."""
    task = prompts[0].task
    state = engine.begin(prompts)
    written: list[tuple[int, ...]] = [()] * len(prompts)
    kept: list[tuple[_Partial, float]] = []
    for step in range(task.n):
        decoding = Decoding(settings.temperature, settings.top_p, seed=seed + step, redraws=settings.redraws)
        expansion = engine.expand(state, settings.candidates, decoding)
        kept = _keep_best(_grow(expansion, written, engine.form.sep), predictor, prompts, settings)
        if not kept:
            break
        if step + 1 < task.n:
            state = engine.select(expansion, [one.index for one, _ in kept])
            written = [one.token_ids for one, _ in kept]
        del expansion  # its keys and values would stay beside those of the next one
    best: list[list[ScoredList]] = [[] for _ in prompts]
    for one, worth in kept:
        best[one.prompt].append(_end(one, worth, engine.form.eos))
    return [tuple(own[: settings.chosen]) for own in best]


def _grow(expansion: Expansion, written: Sequence[tuple[int, ...]], sep: int) -> list[_Partial]:
    """Return the continuations as longer lists, each (prompt, items) once."""
    grown: dict[tuple[int, tuple[str, ...]], _Partial] = {}
    for index, one in enumerate(expansion.continuations):
        items = (*expansion.state.items[one.parent], one.item)
        auxiliary = expansion.state.auxiliary[one.parent] or one.auxiliary
        token_ids = (*written[one.parent], *one.token_ids[:-1], sep)
        key = one.prompt, tuple(normalise(item) for item in items)
        grown.setdefault(key, _Partial(index, one.prompt, items, auxiliary, token_ids))
    return list(grown.values())


def _keep_best(
    grown: Sequence[_Partial], predictor: Scorer, prompts: Sequence[Prompt], settings: SearchSettings
) -> list[tuple[_Partial, float]]:
    """Return the `beam` best lists of each prompt, best first, with their rewards."""
    fitting = _without_overlap(grown, settings) if settings.filter_overlap else list(grown)
    rewards = reward_lists(predictor, [prompts[one.prompt] for one in fitting], [one.items for one in fitting])
    ranked = sorted(zip(fitting, rewards, strict=True), key=lambda rated: (rated[0].prompt, -rated[1]))
    kept: list[tuple[_Partial, float]] = []
    counts: dict[int, int] = {}
    for one, worth in ranked:
        counts[one.prompt] = counts.get(one.prompt, 0) + 1
        if counts[one.prompt] <= settings.beam:
            kept.append((one, worth))
    return kept


def _without_overlap(grown: Sequence[_Partial], settings: SearchSettings) -> list[_Partial]:
    """Drop the lists whose newest query overlaps an earlier one, unless a prompt has no others: filtering only the finished
    lists would often leave a prompt none, since a query that is clicked well is drawn again at the next position."""
    fresh = [one for one in grown if not any(is_duplicate(one.items[-1], item, settings.overlap) for item in one.items[:-1])]
    kept = {one.prompt for one in fresh}
    return fresh + [one for one in grown if one.prompt not in kept]


def _end(one: _Partial, worth: float, eos: int) -> ScoredList:
    token_ids = (*one.token_ids[:-1], eos)
    return ScoredList(RecommendedList(one.items, one.auxiliary, True, len(token_ids)), token_ids, worth)


def draw_rejected(
    engine: SearchEngine, predictor: Scorer, prompts: Sequence[Prompt], settings: SearchSettings, seed: int
) -> list[tuple[ScoredList, ...]]:
    """Return Y_rejected of each prompt, all of one task: the `rejected` worst of `budget` random lists, drawn as serving
    draws them. A list that was cut off has reward 0."""
    import torch

    # A seed here would make all lists of a prompt alike.
    decoding = Decoding(settings.temperature, settings.top_p, redraws=settings.redraws)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = engine.generate(prompts, decoding, settings.budget)
    asked = [prompt for prompt in prompts for _ in range(settings.budget)]
    shown = [one.list.items if one.list.well_formed else () for one in drawn]
    rewards = reward_lists(predictor, asked, shown)
    worst: list[list[ScoredList]] = [[] for _ in prompts]
    for row in sorted(range(len(drawn)), key=lambda row: rewards[row]):
        worst[row // settings.budget].append(ScoredList(drawn[row].list, drawn[row].token_ids, rewards[row]))
    return [tuple(own[: settings.rejected]) for own in worst]
