"""An engine whose lists are given by the test, for tests of what stands around an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from serving.policy.engines import Decoding, Generation
from serving.policy.lists import RecommendedList
from serving.policy.tasks import Task

Script = Callable[[str, Task], RecommendedList]


def numbered_list(prompt: str, task: Task) -> RecommendedList:
    """A well-formed list of items that name their place."""
    items = tuple(f"item {place}" for place in range(task.n))
    return RecommendedList(items, tuple(f"text {name}" for name in task.auxiliary), True, 5 * task.n)


class ScriptedEngine:
    """Answers every prompt by `script`; keeps the batches it was given. `before` runs at the start of each batch."""

    def __init__(self, script: Script = numbered_list, before: Callable[[], object] | None = None) -> None:
        self.script = script
        self.before = before
        self.batches: list[list[str]] = []

    def generate(
        self, prompts: Sequence[str], decoding: Decoding | Sequence[Decoding], task: Task | Sequence[Task], samples: int = 1
    ) -> list[Generation]:
        self.batches.append(list(prompts))
        if self.before:
            self.before()
        decodings = [decoding] * len(prompts) if isinstance(decoding, Decoding) else list(decoding)
        tasks = [task] * len(prompts) if isinstance(task, Task) else list(task)
        return [
            Generation(self.script(prompt, one), (1, 2, 3), -1.5, how)
            for prompt, one, how in zip(prompts, tasks, decodings, strict=True)
            for _ in range(samples)
        ]
