"""Refuses a stage of training that would not fit into memory, before a weight is loaded, and says which settings to lower.

The estimates are sums of what must be there at the same time: weights, gradients, the optimizer's two moments, what a layer keeps
for its gradients, logits, and the search's keys and values. How near they come to measured peaks is in docs/log/memory.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from serving.policy.engines.memory import ModelSize, choose_element, find_free, read_size

if TYPE_CHECKING:
    import torch

Checkpointing = Literal["auto", "on", "off"]
CHECKPOINTING = "Compute layers again for their gradients, a third slower, to save memory; auto: where half of it is not enough."
ADAM_BYTES = 16
"""Of one trained number in float32: itself, its gradient, two moments."""
LOGIT_BYTES = 16
"""Of one logit that is learned from: itself, its copy in float32, its log-probability, its gradient."""
TILE_TOKENS, TILE_WORDS, TILE_BYTES = 4096, 32768, 24
"""TRL computes DPO's log-probabilities from tiles of so many tokens and entries of the vocabulary, some six copies in float32."""
OVERHEAD = 300_000_000
"""What libraries take beside all that is counted."""
TRIED_RANK = 16


class MemoryFault(RuntimeError):
    """A stage that does not fit into memory; the text names the settings to lower and by how much."""


@dataclass(frozen=True)
class Knob:
    """A setting that can be changed for less memory: its value, and others, each of which needs no more than the one before."""

    name: str
    value: Any
    others: Sequence[Any]

    def describe(self, to: Any) -> str:
        verb = f"lower {self.name} from {self.value} to" if isinstance(to, int) and to < self.value else f"set {self.name} ="
        return f"{verb} {to}"


@dataclass(frozen=True)
class Stage:
    """A stage of a job; `need` returns its bytes for values of the knobs."""

    name: str
    knobs: tuple[Knob, ...]
    need: Callable[[Mapping[str, Any]], int]

    @property
    def bytes(self) -> int:
        """What it needs with the settings as they are."""
        return self.need({knob.name: knob.value for knob in self.knobs})


def check_stages(stages: Iterable[Stage], device: torch.device) -> None:
    """Check all stages of a job before the first one, so that hours of search are not lost to a training that cannot start.

    Raises MemoryFault."""
    for stage in stages:
        check_memory(stage, device.type, find_free(device))


@contextmanager
def within_memory(stage: Stage, device: torch.device) -> Iterator[None]:
    """Run a stage. Raises MemoryFault at once where it would not fit, and where memory runs out in it."""
    free = find_free(device)
    check_memory(stage, device.type, free)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryFault(
            f"memory ran out during the {stage.name}: {_gigabytes(free)} GB of {device.type} memory were free, some "
            f"{_gigabytes(stage.bytes)} GB were expected: {advise(stage, min(free, stage.bytes) * 2 // 3)}"
        ) from error


def check_memory(stage: Stage, device: str, free: int) -> None:
    """Raise MemoryFault where the stage needs more than the `free` bytes of a device."""
    if stage.bytes > free:
        raise MemoryFault(
            f"the {stage.name} needs some {_gigabytes(stage.bytes)} GB and {_gigabytes(free)} GB of {device} memory are free: "
            f"{advise(stage, free)}"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that CUDA, torch's allocator of CPU memory or Python itself had no more memory."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def advise(stage: Stage, free: int) -> str:
    """Return in words what to change so that the stage fits into `free` bytes: one setting, else all of them together."""
    now = {knob.name: knob.value for knob in stage.knobs}
    alone = [(knob, to) for knob in stage.knobs if (to := _find_fitting(stage, knob, now, free)) is not None]
    if alone:
        return ", or ".join(knob.describe(to) for knob, to in alone)
    for step in range(1, 9):  # each time all go further along their values
        changed = {knob.name: _advance(knob, step / 8) for knob in stage.knobs}
        if stage.need(now | changed) <= free:
            return " and ".join(knob.describe(to) for knob in stage.knobs if (to := changed[knob.name]) != knob.value)
    least = stage.need(now | {knob.name: _advance(knob, 1.0) for knob in stage.knobs})
    return f"no settings fit, {_gigabytes(least)} GB is the least: take a smaller policy.base, or a device with more memory"


def _find_fitting(stage: Stage, knob: Knob, now: Mapping[str, Any], free: int) -> Any:
    """Return the first other value with which the stage fits, None where there is none."""
    fits = bisect_left(knob.others, 1, key=lambda to: int(stage.need({**now, knob.name: to}) <= free))
    return knob.others[fits] if fits < len(knob.others) else None


def _advance(knob: Knob, share: float) -> Any:
    return knob.others[max(0, round(share * len(knob.others)) - 1)] if knob.others else knob.value


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f}" if count >= 1e8 else f"{count / 1e9:.3f}"


def lower(name: str, value: int, least: int = 1) -> Knob:
    """Return the knob of a whole number that may be lowered to `least`."""
    return Knob(name, value, range(value - 1, least - 1, -1))


def adapt(name: str, rank: int) -> Knob:
    """Return the knob of a LoRA rank: all weights (0) take far more than a rank of 16."""
    return lower(name, rank) if rank else Knob(name, 0, (TRIED_RANK,))


def training_bytes(size: ModelSize, rank: int, device: torch.device) -> int:
    """Return weights, gradients and optimizer; in float32 all of them are trained, else LoRA's over frozen ones."""
    element = choose_element(device)
    if rank:
        return element * size.parameters + ADAM_BYTES * rank * size.adapted
    cast = element * size.parameters if element < 4 else 0  # autocast keeps the weights in bf16 beside
    return ADAM_BYTES * size.parameters + cast


def activation_bytes(size: ModelSize, tokens: int, *, again: bool, element: int) -> int:
    """Return what a forward pass of `tokens` keeps for its gradients, and one layer's gradients; `again`: layers are computed
    twice, so only their inputs are kept."""
    layer = tokens * element * (8 * size.hidden + 3 * size.query + 4 * size.key + 4 * size.inner)
    return size.layers * tokens * 4 * size.hidden + 2 * layer if again else (size.layers + 1) * layer


def logit_bytes(size: ModelSize, answers: int) -> int:
    """Return what the cross-entropy of `answers` tokens takes."""
    return LOGIT_BYTES * size.vocabulary * answers


def tile_bytes(size: ModelSize, tokens: int) -> int:
    """Return what TRL's log-probabilities of `tokens` take."""
    return TILE_BYTES * min(tokens, TILE_TOKENS) * min(size.vocabulary, TILE_WORDS)


def use_checkpointing(setting: Checkpointing, policy: str | Path, tokens: int, device: torch.device) -> bool:
    """Return whether layers are computed again; `auto`: where a pass of `tokens` would else take over half of the free memory."""
    if setting != "auto":
        return setting == "on"
    size = read_size(policy)
    return 2 * activation_bytes(size, tokens, again=False, element=choose_element(device)) > find_free(device)
