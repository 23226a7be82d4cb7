"""A step in parts: no forward pass holds more tokens than it may, and the weights after the step are those of the whole batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import make_tiny_policy
from trainers.policy.aligners.dpo import DpoSettings, make_trainer
from trainers.policy.base import load_policy
from trainers.policy.micro_batches import TooLong, check_longest, split_lengths
from trainers.policy.pairs import Pair
from trainers.policy.sft import Example, SftSettings, add_gradients

WHOLE, PARTS = 100_000, 60
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@given(lengths)
def test_every_row_is_in_one_part_and_no_part_holds_more_tokens_padding_included(found: list[int]) -> None:
    parts = split_lengths(found, 60)
    assert sorted(row for part in parts for row in part) == list(range(len(found)))
    assert all(len(part) * max(found[row] for row in part) <= 60 for part in parts)


def test_an_example_that_alone_is_longer_is_refused_by_the_name_of_the_setting() -> None:
    with pytest.raises(TooLong, match=r"sft.max_tokens = 50: the longest annotation has 61 tokens; set sft.max_tokens to 61"):
        check_longest([9, 61], 50, "sft.max_tokens", "annotation")
    check_longest([9, 50], 50, "sft.max_tokens", "annotation")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_tiny_policy(tmp_path_factory.mktemp("tiny") / "policy", spread=0.1)


def draw_ids(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(4, 300) for _ in range(rng.randint(1, most))]


def watch_tokens(model: Any) -> list[int]:
    """Record the tokens of every forward pass of a model."""
    seen: list[int] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs.get("input_ids") if "input_ids" in kwargs else args[0]).numel()),
        with_kwargs=True,
    )
    return seen


def step_sft(policy: Path, batch: Sequence[Example], max_tokens: int) -> tuple[dict[str, torch.Tensor], float, list[int]]:
    """Weights after one step of SGD, which unlike one of Adam shows the size of a gradient; loss; tokens of the passes."""
    model, tokenizer = load_policy(policy, "cpu", precise=True)
    seen = watch_tokens(model)
    loss = add_gradients(model.train(), batch, tokenizer.pad_token_id, max_tokens)
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    return dict(model.state_dict()), loss, seen


def test_fine_tuning_in_parts_makes_the_step_of_the_whole_batch(policy: Path) -> None:
    rng = random.Random(1)
    batch = [Example(draw_ids(rng, 20), draw_ids(rng, 20)) for _ in range(12)]
    whole, loss, (tokens,) = step_sft(policy, batch, WHOLE)
    parted, same, seen = step_sft(policy, batch, PARTS)
    assert tokens > PARTS >= max(seen)
    assert len(seen) > 3
    assert same == pytest.approx(loss, abs=1e-6)
    for name, weight in whole.items():
        torch.testing.assert_close(parted[name], weight, atol=1e-6, rtol=0)


def step_dpo(policy: Path, pairs: Sequence[Pair], scratch: Path, **changed: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
    """The adapter after one step, and the tokens of the passes."""
    settings = DpoSettings(batch=len(pairs), epochs=1, min_pairs=1, lora_rank=4, learning_rate=1e-2, **changed)
    trainer = make_trainer(policy, pairs, scratch, settings, "cpu")
    trainer.create_optimizer = lambda *_: setattr(trainer, "optimizer", torch.optim.SGD(_trained(trainer.model), lr=0.5))
    trainer.args.warmup_steps = 0  # else the rate of the first step is 0
    seen = watch_tokens(trainer.model.get_base_model())
    trainer.train()
    return {name: weight.detach() for name, weight in trainer.model.named_parameters() if weight.requires_grad}, seen


def _trained(model: Any) -> list[torch.nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    rng = random.Random(2)
    return [Pair(*(tuple(draw_ids(rng, most)) for most in (8, 12, 12))) for _ in range(6)]


@pytest.mark.parametrize("losses", [("sigmoid", "sft"), ("ipo",), ("hinge", "sft")])
def test_alignment_in_parts_makes_the_step_of_the_whole_batch(
    policy: Path, pairs: list[Pair], tmp_path: Path, losses: tuple[Any, ...]
) -> None:
    """TRL's own accumulation would not: its `sft` loss is a mean over the tokens of a part, whatever the parts' sizes."""
    changed = {"loss_type": losses, "loss_weights": (1.0, 0.5)[: len(losses)]}
    whole, (tokens, _) = step_dpo(policy, pairs, tmp_path, max_tokens=WHOLE, **changed)
    parted, seen = step_dpo(policy, pairs, tmp_path, max_tokens=2 * PARTS, **changed)
    assert tokens > 2 * PARTS >= max(seen)
    assert sum(float(weight.abs().sum()) for name, weight in whole.items() if "lora_B" in name) > 0
    for name, weight in whole.items():
        torch.testing.assert_close(parted[name], weight, atol=1e-6, rtol=0)


def test_a_pair_that_alone_is_longer_is_refused(policy: Path, pairs: list[Pair], tmp_path: Path) -> None:
    with pytest.raises(TooLong, match=r"dpo.max_tokens = 32: the longest pair"):
        make_trainer(policy, pairs, tmp_path, DpoSettings(max_tokens=32), "cpu")


def test_layers_computed_again_make_the_same_step(policy: Path, pairs: list[Pair], tmp_path: Path) -> None:
    kept, _ = step_dpo(policy, pairs, tmp_path, checkpointing="off")
    again, _ = step_dpo(policy, pairs, tmp_path, checkpointing="on")
    for name, weight in kept.items():
        torch.testing.assert_close(again[name], weight, atol=1e-6, rtol=0)


def test_what_lora_trains_is_float32_over_a_base_in_bf16(policy: Path) -> None:
    from trainers.policy.sft import _adapted

    model, tokenizer = load_policy(policy, "cpu")
    adapted = _adapted(model.to(torch.bfloat16), tokenizer, SftSettings(lora_rank=2))
    assert {weight.dtype for weight in adapted.parameters() if weight.requires_grad} == {torch.float32}
