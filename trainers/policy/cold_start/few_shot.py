"""A first policy that has learned nothing: the base as it is, shown some annotated lists in every prompt (G3's baseline)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.policy.examples import ListExample, write_examples
from serving.policy.tasks import Task
from streams.events.normal_form import normalise
from trainers.policy.base import load_policy
from trainers.policy.base_form import ListFormSetting
from trainers.policy.sft import Annotation


@dataclass(frozen=True)
class Shown:
    """Annotations by what becomes of them: `examples` are shown in prompts, `tested` are left to test with."""

    examples: tuple[Annotation, ...]
    tested: tuple[Annotation, ...]


def choose_examples(annotations: Sequence[Annotation], shots: int, seed: int) -> Shown:
    """Return `shots` annotations of each task, of different queries, drawn by `seed`; no shown query is tested."""
    order = random.Random(seed)
    shown: dict[str, dict[str, Annotation]] = {}
    for one in order.sample(annotations, len(annotations)):
        of_task = shown.setdefault(one.task, {})
        if len(of_task) < shots:
            of_task.setdefault(normalise(one.query), one)
    queries = {query for of_task in shown.values() for query in of_task}
    examples = tuple(one for of_task in shown.values() for one in of_task.values())
    return Shown(examples, tuple(one for one in annotations if normalise(one.query) not in queries))


def save_few_shot(
    base: str | Path,
    examples: Sequence[Annotation],
    tasks: Mapping[str, Task],
    out: Path,
    device: str,
    list_form: ListFormSetting = "auto",
) -> dict[str, float]:
    """Save the base, as a policy that is shown these lists, into `out`; return how many lists that are.

    Raises BaseFault for a base that cannot be used."""
    model, tokenizer = load_policy(base, device, list_form=list_form)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_examples(out, {name: tuple(_show(one, tasks[name]) for one in examples if one.task == name) for name in tasks})
    return {"examples": float(len(examples))}


def _show(one: Annotation, task: Task) -> ListExample:
    texts = (*(one.auxiliary[name] for name in task.auxiliary), *one.items)
    return ListExample(one.query, texts, one.related, one.session, one.response or "")
