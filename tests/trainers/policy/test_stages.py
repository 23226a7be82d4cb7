"""What the stages of the job `policy` take: more with each setting that costs memory, and about what is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.policy.engines.memory import ModelSize
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task
from tests.support.toy_policy import SMALL, TASKS, draw_annotations
from trainers.policy.aligners.dpo import DpoSettings
from trainers.policy.base import make_base
from trainers.policy.cold_start.gate import ColdStartSettings
from trainers.policy.gate import GateSettings
from trainers.policy.memory import MemoryFault, Stage, check_memory, check_stages
from trainers.policy.search import SearchSettings
from trainers.policy.sft import SftSettings, annotation_texts
from trainers.policy.stages import (
    Lengths,
    cold_gate_stage,
    dpo_stage,
    gate_stage,
    merge_stage,
    plan_cold_gate,
    plan_cold_start,
    plan_iteration,
    search_stage,
    sft_stage,
)

CPU = torch.device("cpu")
QWEN = ModelSize(596_049_920, 630_784, 28, 1024, 3072, 2048, 1024, 151_936, 40_960)
LENGTHS = Lengths(200, 40)


def sft(**settings: Any) -> Stage:
    return sft_stage(QWEN, SftSettings(**settings), LENGTHS, CPU)


def dpo(**settings: Any) -> Stage:
    return dpo_stage(QWEN, DpoSettings(**settings), LENGTHS, CPU)


def search(**settings: Any) -> Stage:
    return search_stage(QWEN, SearchSettings(**settings), LENGTHS, CPU)


def cold_gate(**settings: Any) -> Stage:
    return cold_gate_stage(QWEN, ColdStartSettings(**settings), LENGTHS, CPU)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (sft(), sft(batch=8)),
        (sft(), sft(max_tokens=1000)),
        (sft(), sft(lora_rank=16)),
        (sft(lora_rank=16), sft(lora_rank=1)),
        (sft(checkpointing="off"), sft(checkpointing="on")),
        (dpo(), dpo(batch=2)),
        (dpo(), dpo(max_tokens=1000)),
        (dpo(lora_rank=64), dpo()),
        (dpo(checkpointing="off"), dpo()),
        (search(), search(at_once=4)),
        (search(), search(candidates=4)),
        (search(), search(beam=2, chosen=2)),
        (search(budget=64), search(budget=48)),
        (cold_gate(batch=9), cold_gate(batch=8)),
        (gate_stage(QWEN, GateSettings(batch=9), LENGTHS, CPU), gate_stage(QWEN, GateSettings(batch=8), LENGTHS, CPU)),
    ],
)
def test_a_lower_setting_takes_less(more: Stage, less: Stage) -> None:
    assert more.bytes > less.bytes


def test_all_weights_take_16_bytes_each_in_float32_and_lora_those_of_the_frozen_weights() -> None:
    small = {"batch": 1, "max_tokens": 240}
    assert sft(**small).bytes == pytest.approx(16 * QWEN.parameters, rel=0.15)
    assert sft(**small, lora_rank=16).bytes == pytest.approx(4 * QWEN.parameters, rel=0.4)


def test_max_tokens_is_not_advised_below_the_longest_example() -> None:
    with pytest.raises(MemoryFault) as refused:
        check_memory(dpo(batch=64), "cpu", dpo(batch=1).bytes)
    assert "lower dpo.max_tokens from 8192 to 959" in str(refused.value)
    assert "lower dpo.batch from 64 to 1" in str(refused.value)


def test_a_cold_start_is_planned_with_the_annotations_own_lengths(tmp_path: Path) -> None:
    annotations = draw_annotations(8)
    base = make_base(annotation_texts(annotations, TASKS), tmp_path, SMALL)
    short = plan_cold_start(base, annotations, TASKS, SftSettings(), CPU)
    long = plan_cold_start(base, [*annotations, *draw_long()], TASKS, SftSettings(), CPU)
    assert short.bytes < long.bytes


def draw_long() -> list[Any]:
    from trainers.policy.sft import Annotation

    return [Annotation("suggest", "cat " * 10, ("a", "b"))]


def test_all_stages_of_an_iteration_are_checked_before_the_first(tmp_path: Path) -> None:
    base = make_base(annotation_texts(draw_annotations(8), TASKS), tmp_path, SMALL)
    task = Task(name="suggest", n=2, template="{query}")
    huge = DpoSettings(batch=10**9, max_tokens=10**12)
    stages = plan_iteration(base, [Prompt(task, "cat", (5, 6))], SearchSettings(), huge, GateSettings(), CPU)
    check_stages([stages.search, stages.gate], CPU)
    with pytest.raises(MemoryFault, match="preference optimisation"):
        check_stages([stages.search, stages.dpo, stages.gate], CPU)


def test_merging_takes_the_weights_in_float32_and_rounded_ones_beside_them() -> None:
    on_cpu, on_cuda = merge_stage(QWEN, CPU).bytes, merge_stage(QWEN, torch.device("cuda")).bytes
    assert on_cpu == pytest.approx(4 * QWEN.parameters, rel=0.15)
    rounded = 2 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else 0
    assert on_cuda - on_cpu == rounded * QWEN.parameters
    with pytest.raises(MemoryFault, match=r"merging of the adapter, on the CPU needs some .* take a smaller policy\.base"):
        check_memory(merge_stage(QWEN, CPU), "cpu", 10**9)


def test_the_cold_start_gate_is_planned_with_its_own_prompts(tmp_path: Path) -> None:
    base = make_base(annotation_texts(draw_annotations(8), TASKS), tmp_path, SMALL)
    task = Task(name="suggest", n=2, template="{query}")
    short, long = (plan_cold_gate(base, [Prompt(task, "cat", (5,) * size)], ColdStartSettings(), CPU) for size in (2, 50))
    assert short.bytes < long.bytes


MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from serving.policy.engines.memory import read_size
from tests.support.toy_policy import TASKS, draw_annotations
from trainers.policy import sft
from trainers.policy.stages import Lengths, sft_stage
import trainers.policy.base, transformers, peft

def used():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["RssAnon"].split()[0]) * 1024

torch.set_num_threads(1)
before, peak = used(), [0]
def watch():
    while True:
        peak[0] = max(peak[0], used())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
settings = sft.SftSettings(batch=64, epochs=2, max_tokens=100_000, checkpointing=sys.argv[2])
sft.encode_examples = lambda *_: [sft.Example([5] * 100, [7] * 40) for _ in range(64)]
sft.train_sft(sys.argv[1], [], TASKS, Path(sys.argv[1]) / "out", settings, "cpu")
size = read_size(sys.argv[1])
print(sft_stage(size, settings, Lengths(100, 40), torch.device("cpu")).bytes / (peak[0] - before))
"""


@pytest.mark.full
@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_the_estimate_is_near_the_measured_peak(tmp_path: Path, checkpointing: str) -> None:
    """Of a policy as the demo makes it, in a process of its own. Refusing what would fit is as bad as the reverse."""
    from trainers.policy.base import PolicySettings

    base = make_base([f"word{number} thing{number}" for number in range(900)], tmp_path, PolicySettings(base="scratch", layers=6))
    done = subprocess.run([sys.executable, "-c", MEASURE, str(base), checkpointing], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.9 < float(done.stdout) < 2.5
