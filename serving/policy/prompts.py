"""The one way to a prompt's token ids: SFT, search, DPO, gate and serving all ask a policy with what is made here.

So a policy is asked as it was trained, and a prompt does not depend on what else is in its batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from serving.policy.examples import Examples, read_examples
from serving.policy.prompt_text import Asked, bound, render_chat, render_raw, render_raw_examples
from serving.policy.tasks import Task
from serving.policy.text_tokens import encode_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USUAL_CONTEXT = 2048
"""Tokens, for a model whose configuration names no longest input."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The question for one list of a task about a query, as token ids of the policy (at least one)."""

    task: Task
    query: str
    token_ids: tuple[int, ...]


class PromptEncoder(Protocol):
    """What makes prompts: an engine, or a `Prompter` where no weights are loaded."""

    def encode_prompt(
        self, task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
    ) -> Prompt:
        """Return the prompt for one list. `related`: co-occurring queries, best first; `session`: earlier ones, oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class Prompter:
    """Makes the prompts of a policy out of its tokenizer, `context`, its longest prompt and list together in tokens, and the
    example lists that it is shown."""

    tokenizer: PreTrainedTokenizerBase
    context: int
    examples: Examples = field(default_factory=dict)

    @classmethod
    def load(cls, policy: Path) -> Prompter:
        """Read tokenizer, configuration and examples of a policy folder. Raises OSError or ValueError naming the folder."""
        from transformers import AutoConfig, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(policy, local_files_only=True, trust_remote_code=False)
        config = AutoConfig.from_pretrained(policy, local_files_only=True, trust_remote_code=False)
        return cls(tokenizer, find_context(config), read_examples(policy))

    def encode_prompt(
        self, task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
    ) -> Prompt:
        """Return the prompt for one list, short enough that the task's longest list fits behind it.

        Where it does not fit, the policy's examples go first, from the last, then side information: co-occurring queries from the
        last, the session's from the oldest, the end of the answer. Only what is still too long without any loses its start,
        before the query."""
        shown = self.examples.get(task.name, ())
        asked = bound(task, Asked(query, tuple(related), tuple(session), response or "", shown))
        room = max(1, self.context - task.max_new_tokens)
        ids = self._encode(task, asked)
        if len(ids) > room:
            ids = self._encode(task, _shrink(asked, lambda smaller: len(self._encode(task, smaller)) <= room))
        return Prompt(task, query, tuple(ids[-room:] or [int(self.tokenizer.eos_token_id)]))

    def _encode(self, task: Task, asked: Asked) -> list[int]:
        if self.tokenizer.chat_template:
            return encode_pieces(render_chat(task, asked, self.tokenizer), self.tokenizer)
        pieces = [*render_raw_examples(task, asked, self.tokenizer), *render_raw(task, asked)]
        return [*_find_start(self.tokenizer), *encode_pieces(pieces, self.tokenizer)]


def find_context(config: Any) -> int:
    """Return how many tokens a model reads at most, from its configuration.

    Layers that see a window of the last tokens alone see all of them while there are no more than that."""
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", None) or _USUAL_CONTEXT)
    window = getattr(text, "sliding_window", None) if getattr(text, "layer_types", None) is None else None
    return min(longest, int(window)) if window else longest


def _find_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the BOS token where the tokenizer begins a text with it."""
    empty = [int(token) for token in tokenizer("")["input_ids"]]
    return empty[:1] if empty[:1] == [tokenizer.bos_token_id] else []


def _cut_examples(asked: Asked, count: int) -> Asked:
    return replace(asked, examples=asked.examples[:count])


def _cut_related(asked: Asked, count: int) -> Asked:
    return replace(asked, related=asked.related[:count])


def _cut_session(asked: Asked, count: int) -> Asked:
    return replace(asked, session=asked.session[len(asked.session) - count :])


def _cut_response(asked: Asked, count: int) -> Asked:
    return replace(asked, response=asked.response[:count].rstrip())


def _shrink(asked: Asked, fits: Callable[[Asked], bool]) -> Asked:
    """Return as much of examples and side information, which do not fit, as does; none where nothing does."""
    cuts = (
        (_cut_examples, len(asked.examples)),
        (_cut_related, len(asked.related)),
        (_cut_session, len(asked.session)),
        (_cut_response, len(asked.response)),
    )
    for cut, most in cuts:
        fitting = _count_fitting(asked, cut, most, fits)
        asked = cut(asked, max(0, fitting - 1))
        if fitting:
            return asked
    return asked


def _count_fitting(asked: Asked, cut: Callable[[Asked, int], Asked], most: int, fits: Callable[[Asked], bool]) -> int:
    """Return how many of the amounts 0 to `most` - 1 fit; the largest of them was tried, so it does fit."""
    return bisect_right(range(most), False, key=lambda count: not fits(cut(asked, count)))
