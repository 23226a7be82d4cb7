"""Two ways to load a policy are the same policy only where they give every token the same probability."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.pretrained.policies import load_saved, measure_drift, score_tokens
from tests.support.models import make_tiny_policy


def test_a_policy_that_is_saved_and_loaded_again_is_the_same(tmp_path: Path) -> None:
    policy = make_tiny_policy(tmp_path / "policy")
    assert measure_drift(policy, tmp_path / "base", ["red shoes", "trail"]) == {"reloaded": 0.0}


def test_another_policy_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, other = make_tiny_policy(tmp_path / "policy"), load_saved(make_tiny_policy(tmp_path / "other", seed=1), "cpu")
    monkeypatch.setattr("benchmarks.pretrained.policies._reload", lambda engine: other.model)
    assert measure_drift(policy, tmp_path / "base", ["red shoes"])["reloaded"] > 0.1


def test_the_score_of_a_token_is_its_share_of_the_models_weights(tmp_path: Path) -> None:
    import torch

    model: Any = load_saved(make_tiny_policy(tmp_path / "policy"), "cpu").model
    ids = [5, 9, 17, 4]
    with torch.inference_mode():
        weights = [model(input_ids=torch.tensor([ids[:length]])).logits[0, -1].double().exp() for length in (1, 2, 3)]
    expected = [math.log(float(row[token] / row.sum())) for row, token in zip(weights, ids[1:], strict=True)]
    assert score_tokens(model, ids).tolist() == pytest.approx(expected, abs=1e-4)
