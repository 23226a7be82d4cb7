"""The interface of an engine, which runs a policy: serving answers with it, the trainers search and sample with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from serving.policy.lists import RecommendedList
from serving.policy.prompts import Prompt, PromptEncoder


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are drawn. `max_new_tokens` None is the task's own limit. A `seed` makes one row's draw its own, whatever batch
    it is in. `redraws`: how often in a list an item that repeats an earlier one is drawn anew. `greedy` takes the likeliest token
    and ignores all the others."""

    temperature: float = 0.9
    top_p: float = 0.95
    max_new_tokens: int | None = None
    seed: int | None = None
    redraws: int = 0
    greedy: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.temperature <= 10.0:
            raise ValueError(f"temperature {self.temperature} is not in (0, 10]; greedy=True takes the likeliest token")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p} is not in (0, 1]")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens {self.max_new_tokens} is not at least 1")
        if self.redraws < 0:
            raise ValueError(f"redraws {self.redraws} is less than 0")

    def describe(self) -> dict[str, Any]:
        """Return what an impression records: only the parameters that influenced the draw."""
        if self.greedy:
            return {"greedy": True}
        unused = {"greedy"} if self.redraws else {"greedy", "redraws"}
        return {key: value for key, value in asdict(self).items() if value is not None and key not in unused}


@dataclass(frozen=True, slots=True)
class Generation:
    """One generated list; `token_ids` end with EOS when the list ended.

    `logprob`: the log-probability with which this decoding draws these token ids: under the grammar, temperature, top-p and
    redraws, whatever was drawn and undone on the way (0 when greedy); None where it was not asked for. `policy_logprob`: their
    log-probability under the policy itself (temperature 1, all tokens). `forced`: the draws of them which the grammar changed."""

    list: RecommendedList
    token_ids: tuple[int, ...]
    logprob: float | None
    decoding: Decoding
    policy_logprob: float
    forced: int


class Engine(PromptEncoder, Protocol):
    """A loaded policy. Every list that it writes follows the grammar: it is well-formed unless `max_new_tokens` cut it, and no
    item repeats an earlier one or the prompt's query."""

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding | Sequence[Decoding], samples: int = 1, *, logprobs: bool = False
    ) -> list[Generation]:
        """Return one list a prompt, or `samples` of each (p0 s0, p0 s1, …); one decoding for all, or one a prompt. `logprobs`
        asks for `Generation.logprob`, which with redraws costs one more pass."""
        ...
