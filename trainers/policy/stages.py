"""The stages of the job `policy` that take memory: what each needs with its settings, for the preflight of `memory`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.policy.engines.memory import ModelSize, choose_element, generation_bytes, read_size
from serving.policy.prompts import Prompt, Prompter
from serving.policy.tasks import Task
from trainers.policy.aligners.dpo import DpoSettings
from trainers.policy.base import check_base
from trainers.policy.base_form import ListFormSetting
from trainers.policy.cold_start.gate import ColdStartSettings
from trainers.policy.gate import GateSettings
from trainers.policy.memory import (
    OVERHEAD,
    Knob,
    Stage,
    activation_bytes,
    adapt,
    logit_bytes,
    lower,
    tile_bytes,
    training_bytes,
)
from trainers.policy.search import SearchSettings
from trainers.policy.sft import Annotation, SftSettings, encode_examples

if TYPE_CHECKING:
    from pathlib import Path

    import torch


@dataclass(frozen=True)
class Lengths:
    """The longest prompt and the longest list, in tokens."""

    prompt: int
    answer: int

    @property
    def both(self) -> int:
        return self.prompt + self.answer


def sft_stage(size: ModelSize, settings: SftSettings, lengths: Lengths, device: torch.device) -> Stage:
    """Return supervised fine-tuning on examples of these lengths."""
    return _training_stage("supervised fine-tuning (sft)", "sft", size, settings, lengths, device, 1)


def dpo_stage(size: ModelSize, settings: DpoSettings, lengths: Lengths, device: torch.device) -> Stage:
    """Return preference optimisation; its reference is the policy without the adapter, so it takes no weights of its own."""
    return _training_stage("preference optimisation (dpo)", "dpo", size, settings, lengths, device, 2)


def _training_stage(
    name: str,
    section: str,
    size: ModelSize,
    settings: SftSettings | DpoSettings,
    lengths: Lengths,
    device: torch.device,
    lists: int,
) -> Stage:
    """`lists` of an example go through the model: one, or a chosen and a rejected one."""
    element = choose_element(device)

    def activations(values: Mapping[str, Any], again: bool) -> int:
        fitting = max(1, values[f"{section}.max_tokens"] // (lists * lengths.both))
        rows = lists * min(values[f"{section}.batch"], fitting)
        head = logit_bytes(size, rows * lengths.answer) if lists == 1 else tile_bytes(size, rows * lengths.both)
        return activation_bytes(size, rows * lengths.both, again=again, element=element) + head

    def need(values: Mapping[str, Any]) -> int:
        again = values[f"{section}.checkpointing"] != "off"  # auto turns it on where memory is short
        return OVERHEAD + training_bytes(size, values[f"{section}.lora_rank"], device) + activations(values, again)

    knobs = (
        lower(f"{section}.max_tokens", settings.max_tokens, min(settings.max_tokens, lists * lengths.both)),
        lower(f"{section}.batch", settings.batch),
        adapt(f"{section}.lora_rank", settings.lora_rank),
        Knob(f"{section}.checkpointing", settings.checkpointing, ("on",) if settings.checkpointing == "off" else ()),
    )
    return Stage(name, knobs, need)


def search_stage(size: ModelSize, settings: SearchSettings, lengths: Lengths, device: torch.device) -> Stage:
    """Return the candidate search: the beam's lists with all their candidates, then the lists drawn at random."""
    element = choose_element(device)

    def need(values: Mapping[str, Any]) -> int:
        candidates = (values["search.candidates"] + 1) * values["search.beam"]  # with the beam's own rows
        rows = values["search.at_once"] * max(candidates, values["search.budget"])
        return OVERHEAD + element * size.parameters + generation_bytes(size, rows, lengths.both, element)

    names = ("at_once", "candidates", "beam", "budget")
    return Stage("candidate search", tuple(lower(f"search.{name}", getattr(settings, name)) for name in names), need)


def gate_stage(size: ModelSize, settings: GateSettings, lengths: Lengths, device: torch.device) -> Stage:
    """Return the gate, which writes its test lists with one policy after the other."""
    return _writing_stage("gate", "gate.batch", settings.batch, size, lengths, device)


def cold_gate_stage(size: ModelSize, settings: ColdStartSettings, lengths: Lengths, device: torch.device) -> Stage:
    """Return the cold-start gate, which writes lists with a first policy."""
    return _writing_stage("cold-start gate", "cold_start.batch", settings.batch, size, lengths, device)


def _writing_stage(name: str, knob: str, batch: int, size: ModelSize, lengths: Lengths, device: torch.device) -> Stage:
    element = choose_element(device)

    def need(values: Mapping[str, Any]) -> int:
        return OVERHEAD + element * size.parameters + generation_bytes(size, values[knob], lengths.both, element)

    return Stage(name, (lower(knob, batch),), need)


def merge_stage(size: ModelSize, device: torch.device) -> Stage:
    """Return the merging of an adapter into its base: in float32 and in the CPU's memory, then rounded for the device."""
    rounded = choose_element(device) if choose_element(device) < 4 else 0
    return Stage("merging of the adapter, on the CPU", (), lambda _: OVERHEAD + (4 + rounded) * size.parameters)


def plan_cold_start(
    base: str | Path,
    annotations: Sequence[Annotation],
    tasks: Mapping[str, Task],
    settings: SftSettings,
    device: torch.device,
    list_form: ListFormSetting = "auto",
) -> Stage:
    """Return the stage of a cold start on these annotations. Raises BaseFault, or ValueError for an annotation."""
    tokenizer, _ = check_base(base, list_form)
    size = read_size(base)
    examples = encode_examples(annotations, tasks, Prompter(tokenizer, size.context))
    lengths = Lengths(max(len(one.prompt) for one in examples), max(len(one.response) for one in examples))
    return sft_stage(size, settings, lengths, device)


def plan_cold_gate(policy: Path, prompts: Sequence[Prompt], settings: ColdStartSettings, device: torch.device) -> Stage:
    """Return the stage in which a first policy answers these prompts."""
    return cold_gate_stage(read_size(policy), settings, _longest(prompts), device)


@dataclass(frozen=True)
class Iteration:
    """The stages of one iteration of Algorithm 1."""

    search: Stage
    dpo: Stage
    gate: Stage
    merge: Stage


def plan_iteration(
    policy: Path,
    prompts: Sequence[Prompt],
    search: SearchSettings,
    dpo: DpoSettings,
    gate: GateSettings,
    device: torch.device,
) -> Iteration:
    """Return the stages of an iteration from `policy` with these prompts."""
    size, lengths = read_size(policy), _longest(prompts)
    return Iteration(
        search_stage(size, search, lengths, device),
        dpo_stage(size, dpo, lengths, device),
        gate_stage(size, gate, lengths, device),
        merge_stage(size, device),
    )


def _longest(prompts: Sequence[Prompt]) -> Lengths:
    return Lengths(max(len(one.token_ids) for one in prompts), max(one.task.max_new_tokens for one in prompts))
