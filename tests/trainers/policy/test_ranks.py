"""Several processes train what one would: two on the CPU here, over gloo. What a GPU adds (NCCL, a device each) never ran."""

from __future__ import annotations

import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from serving.releases import registry
from streams.runtime.settings import DataSettings
from tests.support.models import make_tiny_policy
from tests.support.toy_policy import SMALL, TASKS, draw_annotations
from trainers.jobs.runner import run_recorded
from trainers.jobs.settings import TrainerSettings
from trainers.policy.aligners.dpo import DpoSettings, train_dpo
from trainers.policy.base import load_policy, make_base
from trainers.policy.cold_start.gate import ColdStartSettings
from trainers.policy.memory import MemoryFault, Stage, within_memory
from trainers.policy.pairs import Pair
from trainers.policy.ranks import RankFault, add_up, choose_processes, find_rank, train_in_ranks
from trainers.policy.sft import Example, SftSettings, add_gradients, annotation_texts, train_sft

CPU = torch.device("cpu")


def fail_in_the_second(words: str) -> dict[str, float]:
    """What a rank runs: the first waits for the second, which fails."""
    if find_rank()[0] == 1:
        raise torch.OutOfMemoryError(words) if "memory" in words else ValueError(words)
    torch.distributed.barrier()
    return {}


def kill_the_second() -> dict[str, float]:
    if find_rank()[0] == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()
    return {}


def wait_for_ever(here: str) -> dict[str, float]:
    Path(here, str(os.getpid())).touch()
    threading.Event().wait()
    return {}


def measure_gradients(policy: Path, batch: list[Example], max_tokens: int) -> dict[str, float]:
    """The size of each gradient of one step: Adam hides whether all of them are twice or half as large."""
    model, tokenizer = load_policy(policy, "cpu", precise=True)
    weights = dict(model.named_parameters())
    loss = add_up(list(weights.values()), add_gradients(model, batch, tokenizer.pad_token_id, max_tokens))
    return {"loss": loss} | {name: float(weight.grad.norm()) for name, weight in weights.items() if weight.grad is not None}


def assert_same_weights(found: Path, wanted: Path, start: Path) -> None:
    (name,) = {"model.safetensors", "adapter_model.safetensors"} & {one.name for one in wanted.iterdir()}
    weights, expected = load_file(found / name), load_file(wanted / name)
    assert weights.keys() == expected.keys()
    for key, weight in expected.items():
        torch.testing.assert_close(weights[key], weight, atol=2e-5, rtol=1e-3, msg=lambda text, key=key: f"{key}: {text}")
    if name == "model.safetensors":
        before = load_file(start / name)
        assert max(float((expected[key] - before[key]).abs().max()) for key in expected) > 1e-3


@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.full)])
def test_two_processes_fine_tune_as_one_does(tmp_path: Path, rank: int) -> None:
    """25 annotations in batches of 8: the last step has one, so that one rank has none. 60 tokens a pass: a step is of parts."""
    torch.set_num_threads(1)
    annotations = draw_annotations(25)
    base = make_base(annotation_texts(annotations, TASKS), tmp_path / "base", SMALL)
    settings = SftSettings(epochs=1, batch=8, learning_rate=2e-3, max_tokens=60, lora_rank=rank)
    one, two = (
        train_in_ranks(train_sft, (base, annotations, TASKS, tmp_path / str(count), settings, "cpu"), count, CPU)
        for count in (1, 2)
    )
    assert (one["steps"], one["examples"]) == (two["steps"], two["examples"]) == (4, 25)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert_same_weights(tmp_path / "2", tmp_path / "1", base)


@pytest.mark.full
def test_the_gradients_of_two_processes_add_up_to_those_of_one(tmp_path: Path) -> None:
    rng = random.Random(3)
    policy = make_tiny_policy(tmp_path / "policy", spread=0.1)
    batch = [Example([rng.randrange(4, 300) for _ in range(rng.randint(1, 9))], [7] * rng.randint(1, 9)) for _ in range(5)]
    one, two = (train_in_ranks(measure_gradients, (policy, batch, 40), count, CPU) for count in (1, 2))
    assert two == pytest.approx(one, rel=1e-4)
    assert len(two) > 10


def test_two_processes_align_as_one_does(tmp_path: Path) -> None:
    """Nine pairs in batches of four: the last step has one, and the other rank takes part in it without weight."""
    torch.set_num_threads(1)
    rng = random.Random(2)

    def draw(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, 300) for _ in range(rng.randint(2, most)))

    policy = make_tiny_policy(tmp_path / "policy", spread=0.1)
    pairs = [Pair(draw(8), draw(12), draw(12)) for _ in range(9)]
    settings = DpoSettings(batch=4, epochs=2, min_pairs=1, lora_rank=2, learning_rate=1e-3, max_tokens=64)
    one, two = (
        train_in_ranks(train_dpo, (policy, pairs, tmp_path / str(count), settings, "cpu"), count, CPU) for count in (1, 2)
    )
    assert (one["steps"], one["pairs"], one["rank"]) == (two["steps"], two["pairs"], two["rank"]) == (6, 9, 2)
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)
    assert_same_weights(tmp_path / "2", tmp_path / "1", policy)


@pytest.mark.full
def test_the_job_makes_a_first_policy_in_two_processes(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in draw_annotations(300)))
    policy = SMALL.model_copy(update={"annotations": path, "device": "cpu", "processes": 2})
    gate = ColdStartSettings(max_forced=1.0, max_repetitive=0.5)
    sft = SftSettings(epochs=20, learning_rate=1e-2)
    settings = TrainerSettings(data=DataSettings(dir=tmp_path), tasks=TASKS, policy=policy, sft=sft, cold_start=gate)
    assert run_recorded("policy", settings) == 0
    assert registry.read_rollout(tmp_path).champion == "r0000"


def test_the_first_rank_that_fails_ends_the_others_and_its_words_are_raised() -> None:
    with pytest.raises(RankFault, match=r"one of the 2 training processes failed: ValueError: no such row"):
        train_in_ranks(fail_in_the_second, ("no such row",), 2, CPU)


def test_memory_that_runs_out_in_a_rank_ends_the_stage_with_the_settings_to_lower() -> None:
    stage = Stage("supervised fine-tuning (sft)", (), lambda _: 0)
    with (
        pytest.raises(MemoryFault, match=r"memory ran out during the supervised fine-tuning \(sft\)"),
        within_memory(stage, CPU),
    ):
        train_in_ranks(fail_in_the_second, ("out of memory",), 2, CPU)


@pytest.mark.full
def test_a_rank_that_was_killed_is_named() -> None:
    with pytest.raises(RankFault, match=r"one of the 2 training processes ended: .*SIGKILL"):
        train_in_ranks(kill_the_second, (), 2, CPU)


def test_sigterm_ends_the_ranks_and_then_the_job_as_it_would_without_them(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def stop_once_both_run() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop_once_both_run, daemon=True)
    stopper.start()
    with pytest.raises(SystemExit) as ended:
        train_in_ranks(wait_for_ever, (str(tmp_path),), 2, CPU)
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    for one in tmp_path.iterdir():
        assert not Path("/proc", one.name).exists()


@pytest.mark.parametrize(("wanted", "kind", "chosen"), [("auto", "cpu", 1), (3, "cpu", 3), ("auto", "cuda", 4), (2, "cuda", 2)])
def test_there_is_a_process_for_each_device_unless_the_setting_says_fewer(
    monkeypatch: pytest.MonkeyPatch, wanted: Any, kind: str, chosen: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_processes(wanted, torch.device(kind)) == chosen


def test_more_processes_than_devices_are_refused_by_the_name_of_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(RankFault, match=r"policy.processes = 5: this machine has 4 CUDA devices .* say 4, or auto"):
        choose_processes(5, torch.device("cuda"))
