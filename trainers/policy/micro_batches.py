"""Splits a step's batch into parts that fit into memory: their gradients add up to those of the whole batch.

`sft.max_tokens` and `dpo.max_tokens` limit the tokens of one forward pass, padding included. A part's loss is weighted by its
share of what the batch's mean is over, so the step is the same whatever the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any


class TooLong(ValueError):
    """An example that alone has more tokens than a forward pass may have; the text names the setting to raise."""


def split_lengths(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return positions in parts of similar length; the rows of a part times its longest are at most `max_tokens`.

    Every length must be at most `max_tokens` (see `check_longest`)."""
    if len(lengths) * max(lengths, default=0) <= max_tokens:
        return [list(range(len(lengths)))]
    parts: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda one: lengths[one]):
        if parts and (len(parts[-1]) + 1) * lengths[position] <= max_tokens:
            parts[-1].append(position)
        else:
            parts.append([position])
    return parts


def check_longest(lengths: Sequence[int], max_tokens: int, setting: str, what: str) -> None:
    """Raise TooLong where one example alone has more tokens than `setting` allows."""
    if (longest := max(lengths, default=0)) > max_tokens:
        raise TooLong(f"{setting} = {max_tokens}: the longest {what} has {longest} tokens; set {setting} to {longest} or more")


def add_preference_gradients(trainer: Any, step: Any, model: Any, inputs: Mapping[str, Any], max_tokens: int) -> Any:
    """Add a batch's gradients part by part and return its loss.

    `trainer` is TRL's, `step(model, inputs)` its own training step. `inputs` has tensors [2 n, width]: n chosen lists, then the n
    rejected. A loss by pair counts by pairs, TRL's `sft` by tokens of the chosen lists. All processes make as many parts, since
    TRL gathers figures in each."""
    pairs, width = inputs["input_ids"].shape[0] // 2, inputs["input_ids"].shape[1]
    widest = int(trainer.accelerator.gather(inputs["input_ids"].new_tensor([width])).max())
    weights, total = list(trainer.loss_weights), 0.0
    parts = list(_split_pairs(inputs, pairs, max(1, max_tokens // (2 * widest))))
    try:
        for number, (part, by_pairs, by_tokens) in enumerate(parts, start=1):
            trainer.loss_weights = [
                weight * (by_tokens if kind == "sft" else by_pairs)
                for kind, weight in zip(trainer.loss_types, weights, strict=True)
            ]
            last = number == len(parts)
            with nullcontext() if last else trainer.accelerator.no_sync(model):
                total = total + step(model, part)
    finally:
        trainer.loss_weights = weights
    return total


def _split_pairs(inputs: Mapping[str, Any], pairs: int, most: int) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Yield parts of nearly the same number of pairs, each with its share of the pairs and of the chosen lists' tokens."""
    size = math.ceil(pairs / math.ceil(pairs / most))
    answers = inputs["completion_mask"][:pairs, 1:].sum()
    for start in range(0, pairs, size):
        rows = [*range(start, min(start + size, pairs))]
        both = rows + [row + pairs for row in rows]
        part = {name: tensor[both] if tensor.shape[0] == 2 * pairs else tensor[rows] for name, tensor in inputs.items()}
        chosen = part["completion_mask"][: len(rows), 1:].sum()
        yield part, len(rows) / pairs, float(chosen / answers)
