"""Which annotations are tested instead of learned, and the loss on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.prompts import Prompter
from tests.support.toy_policy import TASKS, draw_annotations, make_policy
from trainers.policy.base import load_policy
from trainers.policy.cold_start.held_out import measure_loss, split_annotations
from trainers.policy.sft import Annotation, encode_examples

QUERIES = st.lists(st.sampled_from([f"q{number}" for number in range(80)]), min_size=2, max_size=300)


@given(QUERIES, st.floats(0.01, 0.5), st.integers(1, 30), st.integers(0, 3))
def test_each_annotation_is_learned_or_tested_and_at_most_two_fifths_are_tested(
    queries: list[str], share: float, least: int, seed: int
) -> None:
    annotations = [Annotation("suggest", query, (str(row),)) for row, query in enumerate(queries)]
    learned, tested = split_annotations(annotations, share, least, seed)
    assert sorted(map(str, [*learned, *tested])) == sorted(map(str, annotations))
    assert learned
    assert 1 <= len(tested) <= max(1, 0.4 * len(annotations))
    if len(set(queries)) >= 40:
        assert not {one.query for one in learned} & {one.query for one in tested}
    assert split_annotations(annotations, share, least, seed) == (learned, tested)


def test_a_tenth_is_tested_at_least_sixteen_with_enough_annotations() -> None:
    def count(number: int) -> int:
        return len(split_annotations([Annotation("suggest", f"q{row}", ("x",)) for row in range(number)], 0.1, 16, 0)[1])

    assert [count(number) for number in (2, 20, 40, 160, 500)] == [1, 8, 16, 16, 50]


def test_one_annotation_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="two at least"):
        split_annotations(draw_annotations(1), 0.1, 16, 0)


def test_the_loss_is_the_mean_over_the_tokens_of_the_lists(tmp_path: Path) -> None:
    policy, annotations = make_policy(tmp_path, epochs=2, count=60), draw_annotations(21, seed=5)
    loaded: tuple[Any, Any] = load_policy(policy, "cpu")
    model, tokenizer = loaded
    model.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for one in encode_examples(annotations, TASKS, Prompter(tokenizer, 64)):
            logits = model(torch.tensor([one.prompt + one.response])).logits[0, len(one.prompt) - 1 : -1]
            total -= float(logits.log_softmax(-1).gather(-1, torch.tensor([one.response]).T).sum())
            tokens += len(one.response)
    assert measure_loss(policy, annotations, TASKS, "cpu") == pytest.approx(total / tokens, rel=1e-4)
