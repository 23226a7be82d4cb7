"""Annotations that are not learned, by which a first policy is tested: which ones, and the loss on them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from serving.policy.prompts import Prompter, find_context
from serving.policy.tasks import Task
from streams.events.normal_form import normalise
from trainers.policy.base import load_policy
from trainers.policy.base_form import ListFormSetting
from trainers.policy.sft import Annotation, encode_examples, pad_batch, response_loss

LEAST_LEFT = 0.6
"""Share of the annotations that is learned in any case."""
ENOUGH_QUERIES = 40
ROWS_AT_ONCE = 16


def split_annotations(
    annotations: Sequence[Annotation], share: float, least: int, seed: int
) -> tuple[list[Annotation], list[Annotation]]:
    """Return the annotations to learn from and those to test with, each in order; both have one at least.

    With 40 different queries or more no query is in both. Raises ValueError for fewer than two annotations."""
    if len(annotations) < 2:
        raise ValueError(f"{len(annotations)} annotations: two at least are needed, one to learn from and one to test with")
    wanted = max(1, min(max(least, round(share * len(annotations))), int((1 - LEAST_LEFT) * len(annotations))))
    groups = _group(annotations)
    random.Random(seed).shuffle(groups)
    tested: set[int] = set()
    for group in groups:
        if len(tested) + len(group) <= wanted:
            tested.update(group)
    tested = tested or {0}  # every query is more frequent than what may be held out
    learned = [one for row, one in enumerate(annotations) if row not in tested]
    return learned, [annotations[row] for row in sorted(tested)]


def _group(annotations: Sequence[Annotation]) -> list[list[int]]:
    """Return the rows by query; each row alone where there are too few different queries to hold some out."""
    by_query: dict[str, list[int]] = {}
    for row, one in enumerate(annotations):
        by_query.setdefault(normalise(one.query), []).append(row)
    return list(by_query.values()) if len(by_query) >= ENOUGH_QUERIES else [[row] for row in chain(*by_query.values())]


def measure_loss(
    policy: str | Path,
    annotations: Sequence[Annotation],
    tasks: Mapping[str, Task],
    device: str,
    list_form: ListFormSetting = "auto",
) -> float:
    """Return a policy's, or a base model's, loss on annotated lists in nats a token."""
    import torch

    loaded: tuple[Any, Any] = load_policy(policy, device, list_form=list_form)
    model, tokenizer = loaded
    model.eval()
    examples = encode_examples(annotations, tasks, Prompter(tokenizer, find_context(model.config)))
    total = 0.0
    with torch.inference_mode():
        for start in range(0, len(examples), ROWS_AT_ONCE):
            batch = examples[start : start + ROWS_AT_ONCE]
            ids, mask, labels = pad_batch(batch, tokenizer.pad_token_id, model.device)
            total += float(response_loss(model, ids, mask, labels)) * sum(len(one.response) for one in batch)
    return total / sum(len(one.response) for one in examples)
