"""The loop that writes lists: draw a token for each row, go back where an item is to be drawn anew, drop rows that have ended.

A user gains nothing from the same recommendation twice (G20: exclusivity). A small policy that has learned what is clicked
draws its items nearly independently and repeats itself in half of its lists; going back to the start of the repeated item costs
a few tokens, where drawing the list anew would cost all of it. The grammar alone would make another item out of the repeated one
by force.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch

from serving.policy.engines.drafts import Draft, Score
from serving.policy.engines.forward_passes import Rows, advance, take
from serving.policy.engines.grammar import Choice, allow
from serving.policy.engines.sampling import Draws, Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SET_ASIDE = 4
"""Ended rows leave the batch once they are one in so many of it: that copies the keys and values of those that stay."""

Finished = tuple[tuple[int, ...], Rows]
"""Rows that left the batch, and their numbers."""


@dataclass(frozen=True, slots=True)
class Writing:
    """What is written: a draft a row, each until it has `until` of its texts. `scored`: the rows for which both log-probabilities
    of a draw are wanted, with redraws left and without."""

    drafts: Sequence[Draft]
    until: Sequence[int]
    scored: Sequence[bool]

    def has_ended(self, row: int) -> bool:
        return self.drafts[row].over or self.drafts[row].part >= self.until[row]

    def count_steps(self) -> int:
        """Return how many tokens may have to be drawn for the longest of the lists, redrawn items and all."""
        steps = [0]
        for draft, until in zip(self.drafts, self.until, strict=True):
            limits = draft.outline.limits[draft.part : until]
            steps.append(min(sum(limits), draft.outline.tokens) + draft.redraws * max(limits))
        return max(steps)


def write(model: PreTrainedModel, rows: Rows, writing: Writing, sampler: Sampler, *, keep: bool = False) -> list[Finished]:
    """Write until every row has ended; the drafts are changed. With `keep` return the rows, without the token that ended each."""
    finished: list[Finished] = []
    live = list(range(len(rows)))
    starts = _Starts.begin(rows) if any(draft.redraws for draft in writing.drafts) else None
    for step in range(sampler.uniforms.shape[1]):
        tokens, undone = _draw(rows, live, writing, sampler, step)
        going = [not writing.has_ended(row) for row in live]
        if not any(going):
            break
        if going.count(False) * _SET_ASIDE >= len(live):
            if keep:
                over = [slot for slot, goes in enumerate(going) if not goes]
                finished.append((tuple(live[slot] for slot in over), take(rows, torch.tensor(over, device=tokens.device))))
            stay = [slot for slot, goes in enumerate(going) if goes]
            kept = torch.tensor(stay, device=tokens.device)
            rows, tokens, sampler = take(rows, kept), tokens[kept], sampler.take(kept)
            starts = starts.take(kept) if starts else None
            live, undone, going = [live[slot] for slot in stay], [undone[slot] for slot in stay], [True] * len(stay)
        appended = [goes and not back for goes, back in zip(going, undone, strict=True)]
        rows = advance(model, rows, tokens, None if all(appended) else torch.tensor(appended, device=tokens.device))
        if starts:
            rows = starts.follow(rows, [writing.drafts[row] for row in live], appended, undone)
    return [*finished, (tuple(live), rows)] if keep else []


def _draw(rows: Rows, live: Sequence[int], writing: Writing, sampler: Sampler, step: int) -> tuple[torch.Tensor, list[bool]]:
    """Draw a token for each row and add it to its draft; return the tokens, and where a repetition was undone."""
    drafts = [writing.drafts[row] for row in live]
    open_ = [not writing.has_ended(row) for row in live]
    choices = [draft.choose(draft.redraws > 0) if goes else _ANY for draft, goes in zip(drafts, open_, strict=True)]
    draws = sampler.draw(rows.logits, allow(drafts[0].grammar, choices), step)
    others = _score_others(rows, live, writing, sampler, draws)
    policy = rows.logits.gather(-1, draws.tokens[:, None])[:, 0] - rows.logits.logsumexp(-1)
    figures = zip(draws.tokens.tolist(), policy.tolist(), draws.logprobs.tolist(), draws.forced.tolist(), strict=True)
    undone = [False] * len(live)
    for slot, (token, own, drawn, forced) in enumerate(figures):
        if open_[slot]:
            pair = (drawn, others.get(slot, drawn))
            redrawing, final = pair if drafts[slot].redraws else reversed(pair)
            undone[slot] = not drafts[slot].add(token, Score(own, redrawing, final, int(forced)))
    return draws.tokens, undone


_ANY = Choice(0, (), ())
"""What a row that has ended may draw: the token is not used."""


def _score_others(rows: Rows, live: Sequence[int], writing: Writing, sampler: Sampler, draws: Draws) -> dict[int, float]:
    """Return the log-probability of the drawn tokens had there been redraws left, where there are none, and the reverse; by slot,
    only of those where it matters."""
    slots = [
        slot
        for slot, row in enumerate(live)
        if writing.scored[row] and not writing.has_ended(row) and writing.drafts[row].can_repeat()
    ]
    if not slots:
        return {}
    drafts = [writing.drafts[live[slot]] for slot in slots]
    allowed = allow(drafts[0].grammar, [draft.choose(draft.redraws == 0) for draft in drafts])
    index = torch.tensor(slots, device=draws.tokens.device)
    shares = sampler.take(index).share(rows.logits[index], allowed)
    scores = shares.score(torch.arange(len(slots), device=index.device), draws.tokens[index])
    return dict(zip(slots, scores.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Starts:
    """Where each row's current item starts, so that the row can go back there: tensors by slot of the batch."""

    logits: torch.Tensor
    lengths: torch.Tensor
    columns: torch.Tensor

    @classmethod
    def begin(cls, rows: Rows) -> Self:
        return cls(rows.logits.clone(), rows.lengths.clone(), torch.full_like(rows.lengths, rows.mask.shape[1]))

    def take(self, slots: torch.Tensor) -> _Starts:
        """Return those of these slots."""
        return _Starts(self.logits[slots], self.lengths[slots], self.columns[slots])

    def follow(self, rows: Rows, drafts: Sequence[Draft], appended: Sequence[bool], undone: Sequence[bool]) -> Rows:
        """After the tokens were appended: note the starts of new texts, and return the rows with those undone back at theirs."""
        new = [slot for slot, draft in enumerate(drafts) if appended[slot] and draft.start == len(draft.token_ids)]
        if new:
            self.logits[new], self.lengths[new] = rows.logits[new], rows.lengths[new]
            self.columns[new] = rows.mask.shape[1]
        if not any(undone):
            return rows
        back = torch.tensor(undone, device=rows.mask.device)[:, None]
        gone = back & (torch.arange(rows.mask.shape[1], device=rows.mask.device)[None] >= self.columns)
        return replace(
            rows,
            mask=rows.mask & ~gone,
            lengths=torch.where(back, self.lengths, rows.lengths),
            logits=torch.where(back, self.logits, rows.logits),
        )
