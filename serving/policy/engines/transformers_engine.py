"""The engine that runs a policy with transformers: serving answers with it and the trainers search with it.

Our own loop instead of `generate`: each row has its own task, decoding and limit, finished rows leave the batch, a prompt is
read once however many lists are drawn from it, and a candidate search reuses keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from serving.policy.engines import Decoding, Generation
from serving.policy.engines.drafts import Draft, make_outline
from serving.policy.engines.drawing import Writing, write
from serving.policy.engines.forward_passes import prefill, take
from serving.policy.engines.grammar import make_grammar
from serving.policy.engines.list_logprobs import find_logprobs, hold_prompts
from serving.policy.engines.loading import choose_device, load_policy
from serving.policy.engines.sampling import Sampler
from serving.policy.engines.search_state import Expansion, SearchState, expand_rows, select_rows, start_search
from serving.policy.examples import NO_EXAMPLES, Examples, read_examples
from serving.policy.list_form import find_form
from serving.policy.lists import encode_list, parse
from serving.policy.prompts import Prompt, Prompter, find_context
from serving.policy.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_T = TypeVar("_T")


class TransformersEngine:
    """A loaded policy (see `serving.policy.engines.Engine`). Not for use by several threads at once."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Examples = NO_EXAMPLES) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.form = find_form(tokenizer)
        output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        columns = len(output.weight)
        self.grammar = make_grammar(tokenizer, columns, model.device)
        self._prompter = Prompter(tokenizer, find_context(model.config), examples)

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> TransformersEngine:
        """Load a policy folder. Raises FileNotFoundError, OSError or ValueError naming the folder and what is wrong."""
        return cls(*load_policy(path, choose_device(device)), read_examples(path))

    def encode_prompt(
        self, task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
    ) -> Prompt:
        """Return the prompt for one list (see `serving.policy.prompts`)."""
        return self._prompter.encode_prompt(task, query, related, session, response)

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding | Sequence[Decoding], samples: int = 1, *, logprobs: bool = False
    ) -> list[Generation]:
        """Return one list a prompt, or `samples` of each (p0 s0, p0 s1, …), each prompt read once (see `Engine`)."""
        if not prompts:
            return []
        decodings = _repeat(_spread(decoding, len(prompts)), samples)
        asked = [row for row in range(len(prompts)) for _ in range(samples)]
        drafts = [self._begin_draft(prompts[row], how) for row, how in zip(asked, decodings, strict=True)]
        ids = [prompt.token_ids for prompt in prompts]
        rows = prefill(self.model, ids, self.form.eos)
        read = hold_prompts(rows, ids)
        if samples > 1:
            rows = take(rows, torch.tensor(asked, device=self.model.device))
        scored = [logprobs and draft.given_redraws > 0 for draft in drafts]
        writing = Writing(drafts, [len(draft.outline.ends) for draft in drafts], scored)
        sampler = Sampler.prepare(decodings, writing.count_steps(), self.model.device)
        write(self.model, rows, writing, sampler)
        found = find_logprobs(self.model, read, asked, drafts, sampler) if logprobs else [None] * len(drafts)
        return [
            self._describe(prompts[row], how, draft, logprob)
            for row, how, draft, logprob in zip(asked, decodings, drafts, found, strict=True)
        ]

    def _begin_draft(self, prompt: Prompt, decoding: Decoding) -> Draft:
        query_ids = encode_list([prompt.query], [], self.tokenizer)[:-1]
        outline = make_outline(self.form, prompt.task, decoding.max_new_tokens, prompt.query, query_ids)
        return Draft.begin(self.grammar, outline, 0 if decoding.greedy else decoding.redraws)

    def _describe(self, prompt: Prompt, decoding: Decoding, draft: Draft, logprob: float | None) -> Generation:
        return Generation(
            parse(draft.token_ids, self.tokenizer, prompt.task),
            tuple(draft.token_ids),
            logprob,
            decoding,
            sum(score.policy for score in draft.scores),
            sum(score.forced for score in draft.scores),
        )

    @torch.inference_mode()
    def begin(self, prompts: Sequence[Prompt]) -> SearchState:
        """Read the prompts, all of one task, once and start a candidate search with one empty list each."""
        drafts = [self._begin_draft(prompt, Decoding()) for prompt in prompts]
        rows = prefill(self.model, [prompt.token_ids for prompt in prompts], self.form.eos)
        return start_search(rows, prompts[0].task, drafts)

    @torch.inference_mode()
    def expand(self, state: SearchState, m: int, decoding: Decoding) -> Expansion:
        """Draw `m` continuations of one more item (with the auxiliary texts, before the first item) from every row of `state`."""
        return expand_rows(self.model, self.tokenizer, state, m, decoding)

    @torch.inference_mode()
    def select(self, expansion: Expansion, chosen: Sequence[int]) -> SearchState:
        """Go on with these continuations (indices into `expansion.continuations`, in any order)."""
        return select_rows(self.model, expansion, chosen)


def _spread(decoding: Decoding | Sequence[Decoding], count: int) -> list[Decoding]:
    if isinstance(decoding, Decoding):
        return [decoding] * count
    if len(decoding) != count:
        raise ValueError(f"{len(decoding)} decodings for {count} prompts")
    return list(decoding)


def _repeat(values: Sequence[_T], times: int) -> list[_T]:
    return [value for value in values for _ in range(times)]
