"""The engine that runs a policy with transformers: serving answers with it and the trainers search with it.

Our own loop instead of `generate`: each row has its own task, decoding and limit, finished rows leave the batch, a prompt is
read once however many lists are drawn from it, and a candidate search reuses keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from serving.policy.engines import Decoding, Generation
from serving.policy.engines.forward_passes import Rows, advance, prefill, take
from serving.policy.engines.loading import choose_device, load_policy
from serving.policy.engines.redrawing import Drawn, Redrawing
from serving.policy.engines.sampling import Sampler
from serving.policy.engines.search_state import Expansion, SearchState, expand_rows, select_rows, start_search
from serving.policy.list_form import find_form
from serving.policy.lists import parse
from serving.policy.prompts import Prompt, Prompter, find_context
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
        self._prompter = Prompter(tokenizer, find_context(model.config))

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> TransformersEngine:
        """Load a policy folder. Raises FileNotFoundError, OSError or ValueError naming the folder and what is wrong."""
        return cls(*load_policy(path, choose_device(device)))

    def encode_prompt(
        self, task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
    ) -> Prompt:
        """Return the prompt for one list (see `serving.policy.prompts`)."""
        return self._prompter.encode_prompt(task, query, related, session, response)

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], decoding: Decoding | Sequence[Decoding], samples: int = 1) -> list[Generation]:
        """Return one list a prompt, or `samples` of each (p0 s0, p0 s1, …), each prompt read once."""
        if not prompts:
            return []
        decodings = _repeat(_spread(decoding, len(prompts)), samples)
        tasks = _repeat([prompt.task for prompt in prompts], samples)
        limits = [chosen.max_new_tokens or of.max_new_tokens for chosen, of in zip(decodings, tasks, strict=True)]
        rows = prefill(self.model, [prompt.token_ids for prompt in prompts], self.form.eos)
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
    def begin(self, prompts: Sequence[Prompt]) -> SearchState:
        """Read the prompts, all of one task, once and start a candidate search with one empty list each."""
        return start_search(prefill(self.model, [prompt.token_ids for prompt in prompts], self.form.eos), prompts[0].task)

    @torch.inference_mode()
    def expand(self, state: SearchState, m: int, decoding: Decoding) -> Expansion:
        """Draw `m` continuations of one more item (with the auxiliary texts, before the first item) from every row of `state`."""
        return expand_rows(self.model, self.tokenizer, state, m, decoding)

    @torch.inference_mode()
    def select(self, expansion: Expansion, chosen: Sequence[int]) -> SearchState:
        """Go on with these continuations (indices into `expansion.continuations`, in any order), each ended by <SEP>."""
        return select_rows(self.model, self.form, expansion, chosen)


def _spread(decoding: Decoding | Sequence[Decoding], count: int) -> list[Decoding]:
    if isinstance(decoding, Decoding):
        return [decoding] * count
    if len(decoding) != count:
        raise ValueError(f"{len(decoding)} decodings for {count} prompts")
    return list(decoding)


def _repeat(values: Sequence[_T], times: int) -> list[_T]:
    return [value for value in values for _ in range(times)]
