"""The tokens drawn for each row of a batch, and the redrawing of an item that repeats an earlier one of its list.

A user gains nothing from the same recommendation twice (G20: exclusivity). A small policy that has learned what is clicked
draws its items nearly independently and repeats itself in half of its lists; going back to the start of the repeated item costs
a few tokens, where drawing the list anew would cost all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from serving.policy.engines.forward_passes import Rows
from serving.policy.list_form import ListForm


@dataclass(slots=True)
class Drawn:
    """The token ids of each row and their summed log-probability under the policy itself."""

    token_ids: list[list[int]] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    @classmethod
    def start(cls, rows: int) -> Drawn:
        return cls([[] for _ in range(rows)], [0.0] * rows)

    def add(self, live: Sequence[int], ended: Sequence[bool], tokens: torch.Tensor, logits: torch.Tensor) -> None:
        scores = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        for row, over, token, score in zip(live, ended, tokens.tolist(), scores.tolist(), strict=True):
            if not over:
                self.token_ids[row].append(token)
                self.logprobs[row] += score


class Redrawing:
    """Where each row's current item starts, so that the row can go back there. Tensors are by slot of the batch (rows that are
    still drawn), lists by row."""

    def __init__(self, rows: Rows, redraws: Sequence[int], form: ListForm) -> None:
        count = len(redraws)
        self.form = form
        self.left = list(redraws)
        self.items: list[set[tuple[int, ...]]] = [set() for _ in range(count)]
        self.starts = [0] * count
        self.start_logprobs = [0.0] * count
        self.logits, self.lengths = rows.logits, rows.lengths
        self.columns = torch.full_like(rows.lengths, rows.mask.shape[1])

    def reject(self, live: Sequence[int], ended: Sequence[bool], drawn: Drawn) -> list[bool]:
        """After a token was drawn for each row of `live` that had not ended: undo the item that the token ended where it repeats
        an earlier one; return which slots were undone."""
        return [not over and self._reject_row(row, drawn) for row, over in zip(live, ended, strict=True)]

    def _reject_row(self, row: int, drawn: Drawn) -> bool:
        ids = drawn.token_ids[row]
        if ids[-1] not in (self.form.sep, self.form.eos):
            return False
        item = tuple(ids[self.starts[row] : -1])
        if item not in self.items[row] or not self.left[row]:
            self.items[row].add(item)
            return False
        self.left[row] -= 1
        del ids[self.starts[row] :]
        drawn.logprobs[row] = self.start_logprobs[row]
        return True

    def keep(self, slots: torch.Tensor) -> None:
        """Keep only these slots."""
        self.logits, self.lengths, self.columns = self.logits[slots], self.lengths[slots], self.columns[slots]

    def go_back(self, rows: Rows, live: Sequence[int], rejected: Sequence[bool], drawn: Drawn) -> Rows:
        """After the tokens were appended: return the rows with rejected slots back at their item's start; note new starts."""
        new_item = [not back and self._note_start(row, drawn) for row, back in zip(live, rejected, strict=True)]
        here = torch.tensor(new_item, device=rows.mask.device)[:, None]
        self.logits = torch.where(here, rows.logits, self.logits)
        self.lengths = torch.where(here, rows.lengths, self.lengths)
        self.columns = torch.where(here, rows.mask.shape[1], self.columns)
        if not any(rejected):
            return rows
        back = torch.tensor(rejected, device=rows.mask.device)[:, None]
        undone = back & (torch.arange(rows.mask.shape[1], device=rows.mask.device)[None] >= self.columns)
        return replace(
            rows,
            mask=rows.mask & ~undone,
            lengths=torch.where(back, self.lengths, rows.lengths),
            logits=torch.where(back, self.logits, rows.logits),
        )

    def _note_start(self, row: int, drawn: Drawn) -> bool:
        """Note the start of the next text where the row's last token ended one; return whether it did."""
        if drawn.token_ids[row][-1] not in (self.form.sep, self.form.aux):
            return False
        self.starts[row], self.start_logprobs[row] = len(drawn.token_ids[row]), drawn.logprobs[row]
        return True
