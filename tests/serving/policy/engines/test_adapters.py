"""An adapter and its base are one policy: merged in float32, over the very weights it was trained over, or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.policy.engines.adapters import RECORD, check_probes, find_base, load_merged
from serving.policy.engines.transformers_engine import TransformersEngine
from tests.support.adapters import publish, train_at_random
from tests.support.models import make_tiny_policy

IDS = torch.tensor([[5, 9, 17, 30, 44, 80]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return make_tiny_policy(tmp_path / "artifacts" / "base", spread=0.1)


@pytest.fixture
def adapter(base: Path) -> Path:
    return publish(train_at_random(base), base, base.with_name("adapter"))


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits.float()  # type: ignore[no-any-return]


def test_an_adapter_answers_as_the_policy_that_was_trained_and_not_as_its_base(base: Path, adapter: Path) -> None:
    ours = logits(TransformersEngine.load(adapter, "cpu").model)
    torch.testing.assert_close(ours, logits(train_at_random(base)), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(ours, logits(TransformersEngine.load(base, "cpu").model), atol=0.01)
    assert find_base(adapter) == base.resolve()
    assert find_base(base) is None
    assert not (adapter / "model.safetensors").exists()


def test_adapter_and_base_may_be_moved_together(adapter: Path, tmp_path: Path) -> None:
    before = logits(TransformersEngine.load(adapter, "cpu").model)
    shutil.move(tmp_path / "artifacts", tmp_path / "restored")
    moved = TransformersEngine.load(tmp_path / "restored" / "adapter", "cpu")
    assert torch.equal(logits(moved.model), before)


def test_a_base_that_is_gone_is_named(base: Path, adapter: Path) -> None:
    shutil.rmtree(base)
    with pytest.raises(FileNotFoundError, match=f"its base policy {base} is not a folder"):
        TransformersEngine.load(adapter, "cpu")


def test_other_weights_in_the_base_s_folder_are_refused(base: Path, adapter: Path) -> None:
    make_tiny_policy(base, seed=1)
    with pytest.raises(ValueError, match=r"base/model\.safetensors is not the weights that it was trained over"):
        TransformersEngine.load(adapter, "cpu")


def test_an_adapter_without_a_record_of_its_base_is_refused(adapter: Path) -> None:
    (adapter / RECORD).unlink()
    with pytest.raises(ValueError, match=rf"{RECORD}: missing, so the base of this LoRA adapter is not known"):
        TransformersEngine.load(adapter, "cpu")


def test_a_merged_policy_that_rates_a_probe_otherwise_is_refused(adapter: Path) -> None:
    """As one is whose adapter was damaged, or merged by another version of peft in another way."""
    record = json.loads((adapter / RECORD).read_text())
    record["probes"][1]["logprob"] += 0.5
    (adapter / RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"it gives probe 1 of adapter_base\.json the log-probability .* not the same policy"):
        TransformersEngine.load(adapter, "cpu")


def test_rounded_to_bf16_it_still_rates_the_probes_within_the_bound(adapter: Path) -> None:
    merged = load_merged(adapter, torch.bfloat16)
    assert merged.dtype == torch.bfloat16
    check_probes(adapter, merged)


def test_small_updates_that_a_merge_in_bf16_loses_are_kept_by_one_in_float32(base: Path, tmp_path: Path) -> None:
    """Eight updates, each a tenth of a step of bf16: added to weights in bf16 one by one, none of them changes one."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    name = "model.layers.0.mlp.up_proj.weight"
    start: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    start.save_pretrained(base)  # as a base from a hub is
    before = start.state_dict()[name].float()
    trained = train_at_random(base, rank=1)
    with torch.no_grad():
        for which, weight in trained.named_parameters():
            if "lora_" in which:  # 2 (alpha / r) x 1 x the second: a tenth of a bf16 step of a weight of .1
                weight.fill_(1.0 if "lora_A" in which else 2.5e-5 if "up_proj" in which else 0.0)
    once, rounded, policy = publish(trained, base, tmp_path / "artifacts" / "once"), start, base
    for number in range(8):
        rounded = PeftModel.from_pretrained(rounded, str(once)).merge_and_unload()
        policy = publish(trained, policy, tmp_path / "artifacts" / f"kept{number}")
    near = (before.abs() > 0.1) & (before.abs() < 0.124)
    assert torch.equal(rounded.state_dict()[name].float()[near], before[near])
    kept = load_merged(policy, torch.float32).state_dict()[name] - before
    torch.testing.assert_close(kept, torch.full_like(kept, 8 * 5e-5), atol=1e-6, rtol=0)
    last = load_merged(policy, torch.bfloat16).state_dict()[name].float()
    assert torch.equal((last - before)[near], torch.full_like(last[near], 2**-11))  # one step
