"""An engine whose lists are given by the test, for tests of what stands around an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.policy.engines import Decoding, Generation
from serving.policy.lists import RecommendedList
from serving.policy.prompt_text import render_prompt
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task

Script = Callable[[str, Task], RecommendedList]


def numbered_list(prompt: str, task: Task) -> RecommendedList:
    """A well-formed list of items that name their place."""
    items = tuple(f"item {place}" for place in range(task.n))
    return RecommendedList(items, tuple(f"text {name}" for name in task.auxiliary), True, 5 * task.n)


class ScriptedEngine:
    """Answers every prompt by `script`; keeps the batches it was given, as texts: a prompt's tokens are its characters. `before`
    runs at the start of each batch."""

    def __init__(self, script: Script = numbered_list, before: Callable[[], object] | None = None) -> None:
        self.script = script
        self.before = before
        self.forced = 0
        self.batches: list[list[str]] = []

    def encode_prompt(
        self, task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
    ) -> Prompt:
        return Prompt(task, query, tuple(map(ord, render_prompt(task, query, related, session, response))))

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding | Sequence[Decoding], samples: int = 1, *, logprobs: bool = False
    ) -> list[Generation]:
        texts = ["".join(map(chr, prompt.token_ids)) for prompt in prompts]
        self.batches.append(texts)
        if self.before:
            self.before()
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        return [
            Generation(self.script(text, prompt.task), (1, 2, 3), -1.5 if logprobs else None, how, -2.5, self.forced)
            for text, prompt, how in zip(texts, prompts, decodings, strict=True)
            for _ in range(samples)
        ]
