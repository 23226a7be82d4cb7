"""The engine that runs a policy with transformers: serving answers with it and the trainers search with it.

Our own loop instead of `generate`: each row has its own task, decoding and limit, finished rows leave the batch, a prompt is
read once however many lists are drawn from it, and a candidate search reuses keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from serving.policy.engines import Decoding, Generation
from serving.policy.engines.forward_passes import Rows, advance, prefill, take
from serving.policy.engines.loading import choose_device, load_policy
from serving.policy.engines.redrawing import Drawn, Redrawing
from serving.policy.engines.sampling import Sampler
from serving.policy.engines.search_state import Expansion, SearchState, expand_rows, select_rows, start_search
from serving.policy.list_form import find_form
from serving.policy.lists import parse
from serving.policy.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_T = TypeVar("_T")
_DROP = 4
"""Finished rows are dropped once they are one in so many of the batch: dropping copies the keys and values that stay."""


class TransformersEngine:
    """A loaded policy (see `serving.policy.engines.Engine`). Not for use by several threads at once."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.form = find_form(tokenizer)
        self._longest = int(getattr(model.config, "max_position_embeddings", 2048))

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> TransformersEngine:
        """Load a policy folder. Raises FileNotFoundError, OSError or ValueError naming the folder and what is wrong."""
        return cls(*load_policy(path, choose_device(device)))

    def encode_prompts(self, prompts: Sequence[str], room: int) -> list[list[int]]:
        """Return the token ids of each prompt, its start cut off where it would leave less than `room` tokens for the answer."""
        keep = max(1, self._longest - room)
        encoded = self.tokenizer(list(prompts), add_special_tokens=True)["input_ids"]
        return [ids[-keep:] or [self.form.eos] for ids in encoded]

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        decoding: Decoding | Sequence[Decoding],
        task: Task | Sequence[Task],
        samples: int = 1,
    ) -> list[Generation]:
        """Return one list a prompt, or `samples` of each (p0 s0, p0 s1, …), each prompt read once."""
        if not prompts:
            return []
        decodings = _repeat(_spread(decoding, len(prompts), Decoding), samples)
        tasks = _repeat(_spread(task, len(prompts), Task), samples)
        limits = [chosen.max_new_tokens or of.max_new_tokens for chosen, of in zip(decodings, tasks, strict=True)]
        rows = prefill(self.model, self.encode_prompts(prompts, max(limits)), self.form.eos)
        if samples > 1:
            rows = take(rows, torch.arange(len(prompts), device=self.model.device).repeat_interleave(samples))
        drawn = Drawn.start(len(decodings))
        redrawing = Redrawing(rows, [0 if chosen.greedy else chosen.redraws for chosen in decodings], self.form)
        # Twice the longest list leaves room for redraws.
        sampler = Sampler.prepare(decodings, 2 * max(limits), self.model.device)
        self._draw_lists(rows, sampler, limits, [of.n for of in tasks], drawn, redrawing)
        return [
            Generation(parse(ids, self.tokenizer, of), tuple(ids), logprob, chosen)
            for ids, logprob, of, chosen in zip(drawn.token_ids, drawn.logprobs, tasks, decodings, strict=True)
        ]

    def _draw_lists(
        self, rows: Rows, sampler: Sampler, limits: Sequence[int], sizes: Sequence[int], drawn: Drawn, redrawing: Redrawing
    ) -> None:
        """Draw until every row has ended: by EOS, at its limit, or at a <SEP> after its last item (it can only be ill-formed)."""
        live, ended = list(range(len(limits))), [False] * len(limits)
        for step in range(steps := sampler.uniforms.shape[1]):
            tokens = sampler.draw(rows.logits, step)
            drawn.add(live, ended, tokens, rows.logits)
            back = redrawing.reject(live, ended, drawn)
            for slot, row in enumerate(live):
                ended[slot] |= step + 1 == steps or (not back[slot] and self._ends(drawn.token_ids[row], limits[row], sizes[row]))
            if all(ended):
                return
            if sum(ended) * _DROP >= len(live):
                stay = [slot for slot in range(len(live)) if not ended[slot]]
                kept = torch.tensor(stay, device=tokens.device)
                rows, tokens = take(rows, kept), tokens[kept]
                sampler.keep(kept)
                redrawing.keep(kept)
                live, ended, back = [live[slot] for slot in stay], [False] * len(stay), [back[slot] for slot in stay]
            alive = torch.tensor([not undone for undone in back], device=tokens.device) if any(back) else None
            rows = redrawing.go_back(advance(self.model, rows, tokens, alive), live, back, drawn)

    def _ends(self, ids: Sequence[int], limit: int, size: int) -> bool:
        full = ids[-1] == self.form.sep and ids.count(self.form.sep) >= size
        return full or ids[-1] == self.form.eos or len(ids) >= limit

    @torch.inference_mode()
    def begin(self, prompts: Sequence[str], task: Task) -> SearchState:
        """Read the prompts once and start a candidate search with one empty list each."""
        ids = self.encode_prompts(prompts, task.max_new_tokens)
        return start_search(prefill(self.model, ids, self.form.eos), task)

    @torch.inference_mode()
    def expand(self, state: SearchState, m: int, decoding: Decoding) -> Expansion:
        """Draw `m` continuations of one more item (with the auxiliary texts, before the first item) from every row of `state`."""
        return expand_rows(self.model, self.tokenizer, state, m, decoding)

    @torch.inference_mode()
    def select(self, expansion: Expansion, chosen: Sequence[int]) -> SearchState:
        """Go on with these continuations (indices into `expansion.continuations`, in any order), each ended by <SEP>."""
        return select_rows(self.model, self.form, expansion, chosen)


def _spread(one_or_many: _T | Sequence[_T], count: int, kind: type[_T]) -> list[_T]:
    if isinstance(one_or_many, kind):
        return [one_or_many] * count
    many = list(cast("Sequence[_T]", one_or_many))
    if len(many) != count:
        raise ValueError(f"{len(many)} of {kind.__name__} for {count} prompts")
    return many


def _repeat(values: Sequence[_T], times: int) -> list[_T]:
    return [value for value in values for _ in range(times)]
