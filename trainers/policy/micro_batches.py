"""Splits a step's batch into parts that fit into memory: their gradients add up to those of the whole batch.

`sft.max_tokens` and `dpo.max_tokens` limit the tokens of one forward pass, padding included. A part's loss is weighted by its
share of what the batch's mean is over, so the step is the same whatever the limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from trainers.policy.ranks import find_rank, take_share


class TooLong(ValueError):
    """An example that alone has more tokens than a forward pass may have; the text names the setting to raise."""


def split_lengths(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return positions in parts of similar length; the rows of a part times its longest are at most `max_tokens`.

    Every length must be at most `max_tokens` (see `check_longest`)."""
    if lengths and len(lengths) * max(lengths) <= max_tokens:
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
    """Add the gradients of this rank's share of a batch part by part and return its loss.

    `trainer` is TRL's, `step(model, inputs)` its own training step. `inputs` has tensors [2 n, width]: n chosen lists, then the n
    rejected, the same in all ranks. A loss by pair counts by pairs, TRL's `sft` by tokens of the chosen lists. All ranks make as
    many parts, since TRL gathers figures in each; accelerate takes the mean of their gradients, hence the factor."""
    weights, total, ranks = list(trainer.loss_weights), 0.0, find_rank()[1]
    parts = list(_split_pairs(inputs, max_tokens))
    try:
        for number, (part, by_pairs, by_tokens) in enumerate(parts, start=1):
            trainer.loss_weights = [
                weight * ranks * (by_tokens if kind == "sft" else by_pairs)
                for kind, weight in zip(trainer.loss_types, weights, strict=True)
            ]
            last = number == len(parts)
            with nullcontext() if last else trainer.accelerator.no_sync(model):
                total = total + step(model, part)
    finally:
        trainer.loss_weights = weights
    return total


def _split_pairs(inputs: Mapping[str, Any], max_tokens: int) -> Iterator[tuple[dict[str, Any], float, float]]:
    """Yield parts of this rank's share, each with its share of all pairs and of all tokens of the chosen lists.

    A rank that has too few pairs for as many parts as the others makes one of a pair without weight."""
    pairs, width = inputs["input_ids"].shape[0] // 2, inputs["input_ids"].shape[1]
    answers = inputs["completion_mask"][:, 1:].sum(1)
    share = take_share(range(pairs))
    count = math.ceil(math.ceil(pairs / find_rank()[1]) / max(1, max_tokens // (2 * width)))
    for number in range(count):
        own = list(share[number::count])
        rows = own or [0]
        both = rows + [row + pairs for row in rows]
        part = {name: tensor[both] if tensor.shape[0] == 2 * pairs else tensor[rows] for name, tensor in inputs.items()}
        yield part, len(own) / pairs, float(answers[own].sum() / answers[:pairs].sum())
