"""What an iteration publishes: adapters of a lineage add up over one base, and become whole weights in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from serving.policy.engines.adapters import find_base
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.examples import ListExample, read_examples, write_examples
from tests.support.adapters import publish, train_at_random
from tests.support.models import make_tiny_policy
from trainers.policy.adapters import WEIGHTS, join_updates

IDS = torch.tensor([[5, 9, 17, 30, 44, 80]])


def logits(model: object) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits  # type: ignore[operator,no-any-return]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return make_tiny_policy(tmp_path / "base", spread=0.1)


def test_the_updates_of_two_iterations_are_one_adapter_that_is_their_sum(base: Path, tmp_path: Path) -> None:
    first = publish(train_at_random(base, rank=4, seed=1), base, tmp_path / "first")
    trained = train_at_random(first, rank=2, seed=2)
    second = publish(trained, first, tmp_path / "second")
    assert find_base(second) == base.resolve()
    torch.testing.assert_close(logits(TransformersEngine.load(second, "cpu").model), logits(trained), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(trained), logits(TransformersEngine.load(first, "cpu").model), atol=1e-3)


def test_a_lineage_whose_rank_grows_over_the_limit_is_published_as_whole_weights(base: Path, tmp_path: Path) -> None:
    first = publish(train_at_random(base, rank=4, seed=1), base, tmp_path / "first", max_rank=6)
    trained = train_at_random(first, rank=4, seed=2)
    second = publish(trained, first, tmp_path / "second", max_rank=6)
    assert find_base(second) is None
    assert not (second / WEIGHTS).exists()
    torch.testing.assert_close(logits(TransformersEngine.load(second, "cpu").model), logits(trained), atol=1e-5, rtol=1e-5)
    third = publish(train_at_random(second, rank=4, seed=3), second, tmp_path / "third", max_rank=6)
    assert find_base(third) == second.resolve()


def test_matrices_put_side_by_side_have_the_sum_of_the_products() -> None:
    def draw(rank: int) -> dict[str, torch.Tensor]:
        return {"x.lora_A.weight": torch.randn(rank, 7), "x.lora_B.weight": torch.randn(5, rank)}

    def product(update: dict[str, torch.Tensor]) -> torch.Tensor:
        return update["x.lora_B.weight"] @ update["x.lora_A.weight"]

    one, other = draw(2), draw(3)
    torch.testing.assert_close(product(join_updates(one, other)), product(one) + product(other))
    assert join_updates({}, one) is one


def test_what_the_policy_is_shown_is_published_with_the_adapter(base: Path, tmp_path: Path) -> None:
    shown = {"suggest": (ListExample("cat", ("cat food", "cats")),)}
    write_examples(base, shown)
    assert read_examples(publish(train_at_random(base, rank=4, seed=1), base, tmp_path / "first")) == shown
