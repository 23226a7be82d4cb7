"""DPO by TRL: chosen lists become likelier than rejected ones, and what it is measured against is the policy it started from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from serving.policy.engines.adapters import find_base
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.lists import encode_list
from tests.support.toy_policy import ANIMALS, TASK, make_policy
from trainers.policy.aligners.dpo import DpoSettings, TooFewPairs, make_trainer, train_dpo
from trainers.policy.pairs import Pair

SETTINGS = DpoSettings(learning_rate=5e-3, epochs=10, batch=8, lora_rank=4, min_pairs=8)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_policy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pairs(policy: Path) -> list[Pair]:
    """Food and games are liked, prices and sleep are not."""
    engine = TransformersEngine.load(policy, "cpu")

    def write(animal: str, first: str, second: str) -> tuple[int, ...]:
        return tuple(encode_list((f"{animal} {first}", f"{animal} {second}"), (), engine.tokenizer))

    liked, disliked = [("food", "games"), ("games", "food")], [("price", "sleep"), ("sleep", "price")]
    return [
        Pair(engine.encode_prompt(TASK, animal).token_ids, write(animal, *good), write(animal, *bad))
        for animal in ANIMALS
        for good in liked
        for bad in disliked
    ]


@pytest.fixture(scope="module")
def aligned(policy: Path, pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("aligned") / "policy"
    before = (policy / "model.safetensors").read_bytes()
    measured = train_dpo(policy, pairs, out, SETTINGS, "cpu")
    assert (policy / "model.safetensors").read_bytes() == before
    return out, measured


def logprob(folder: Path, before: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """log pi(ids | before) by one plain forward pass of the policy in `folder`."""
    engine = TransformersEngine.load(folder, "cpu")
    with torch.inference_mode():
        scores = engine.model(torch.tensor([[*before, *ids]])).logits[0].log_softmax(-1)
    return sum(float(scores[len(before) + step - 1, token]) for step, token in enumerate(ids))


def margin(folder: Path, pairs: list[Pair]) -> float:
    return sum(logprob(folder, one.prompt, one.chosen) - logprob(folder, one.prompt, one.rejected) for one in pairs) / len(pairs)


def test_chosen_lists_become_likelier_than_rejected_ones(
    policy: Path, pairs: list[Pair], aligned: tuple[Path, dict[str, float]]
) -> None:
    out, measured = aligned
    gained = margin(out, pairs[::4]) - margin(policy, pairs[::4])
    assert gained > 1.0
    assert measured["accuracy"] > 0.9
    assert measured["pairs"] == len(pairs) == 24
    assert measured["steps"] == 30


def test_the_chosen_lists_themselves_become_likelier(
    policy: Path, pairs: list[Pair], aligned: tuple[Path, dict[str, float]]
) -> None:
    out, _ = aligned
    for one in pairs[::8]:
        assert logprob(out, one.prompt, one.chosen) > logprob(policy, one.prompt, one.chosen)


def test_the_result_is_an_adapter_over_its_base_that_serving_loads_and_the_next_iteration_starts_from(
    policy: Path, pairs: list[Pair], aligned: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """Two more iterations: ranks 4, 8, and 12, which is over the limit of 10, so whole weights."""
    out, measured = aligned
    ranks, bases = [measured["rank"]], [find_base(out)]
    for number in range(2):
        settings = SETTINGS.model_copy(update={"epochs": 1, "max_rank": 10})
        ranks.append(train_dpo(out, pairs[:8], tmp_path / str(number), settings, "cpu")["rank"])
        out = tmp_path / str(number)
        bases.append(find_base(out))
    assert ranks == [4, 8, 0]
    assert bases == [policy.resolve(), policy.resolve(), None]
    engine = TransformersEngine.load(out, "cpu")
    assert engine.generate([engine.encode_prompt(TASK, "cat")], _greedy())


def _greedy() -> Any:
    from serving.policy.engines import Decoding

    return Decoding(greedy=True)


def test_the_reference_is_the_policy_it_started_from_also_after_training(
    policy: Path, pairs: list[Pair], aligned: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    """Of a second iteration: its reference is the first one's result, not the policy before it."""
    start, _ = aligned
    trainer = make_trainer(start, pairs, tmp_path, SETTINGS, "cpu")
    trainer.train()
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(4)])
    chosen, rejected = trainer.compute_ref_log_probs(trainer.model, batch)
    for row, one in enumerate(pairs[:4]):
        assert float(chosen[row]) == pytest.approx(logprob(start, one.prompt, one.chosen), abs=1e-3)
        assert float(rejected[row]) == pytest.approx(logprob(start, one.prompt, one.rejected), abs=1e-3)
        assert float(chosen[row]) != pytest.approx(logprob(policy, one.prompt, one.chosen), abs=1e-2)
    with torch.no_grad():
        moved = trainer.model(input_ids=torch.tensor([[5, 6, 7]])).logits
        with trainer.model.disable_adapter():
            still = trainer.model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert not torch.allclose(moved, still, atol=1e-3)


def test_it_learns_from_the_tokens_that_the_policy_wrote(policy: Path, pairs: list[Pair], tmp_path: Path) -> None:
    odd = Pair(pairs[0].prompt, (*map(ord, "cat"), 1), (9, 8, 1))  # no tokenizer would write "cat" so
    (row,) = make_trainer(policy, [odd], tmp_path, SETTINGS, "cpu").train_dataset
    assert row["chosen_ids"] == list(odd.chosen)
    assert row["rejected_ids"] == list(odd.rejected)
    assert row["prompt_ids"] == list(odd.prompt)


def test_too_few_pairs_are_refused(policy: Path, pairs: list[Pair], tmp_path: Path) -> None:
    with pytest.raises(TooFewPairs, match=r"7 pairs, dpo.min_pairs = 8"):
        train_dpo(policy, pairs[:7], tmp_path / "out", SETTINGS, "cpu")
    assert not (tmp_path / "out").exists()


def test_nothing_is_printed(policy: Path, pairs: list[Pair], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_dpo(policy, pairs[:8], tmp_path / "out", SETTINGS.model_copy(update={"epochs": 1}), "cpu")
    assert capfd.readouterr() == ("", "")
