"""The gate refuses a policy that is not better by the judge, breaks the format, drifts in length, or repeats itself."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.engines import Decoding, Generation
from serving.policy.lists import RecommendedList
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task
from trainers.policy.gate import GateSettings, Measured, decide, evaluate, paired_gain

SETTINGS = GateSettings()
TASK = Task(name="suggest", n=2, template="{query}")


def measured(judged: Sequence[float], **changed: float) -> Measured:
    whole = Measured(0.1, float(np.mean(judged)), 0.99, 0.02, 10.0, 0.02, len(judged), tuple(judged))
    return replace(whole, **changed)  # type: ignore[arg-type]


def noisy(mean: float, spread: float = 0.02, count: int = 400) -> list[float]:
    rng = random.Random(7)
    return [mean + rng.uniform(-spread, spread) for _ in range(count)]


CHAMPION = measured(noisy(0.10))
BETTER = noisy(0.12)


def test_a_better_policy_in_good_form_passes() -> None:
    verdict = decide(CHAMPION, measured(BETTER), SETTINGS)
    assert verdict.passed
    assert verdict.reasons == ()


@pytest.mark.parametrize(
    ("challenger", "reason"),
    [
        (measured(noisy(0.10)), "not better by the judge: AEC "),
        (measured(noisy(0.08)), "not better by the judge: AEC 0.07"),
        (measured(noisy(0.08), aec_predictor=0.9), "not better by the judge"),
        (measured(BETTER, well_formed=0.949), "list format broken: 94.9% well-formed, at least 95.0% needed"),
        (
            measured(BETTER, forced=0.51),
            "form forgotten: the grammar had to change a draw in 51.0% of lists, at most 50.0% allowed",
        ),
        (measured(BETTER, mean_tokens=12.6), "length drifted: 12.6 tokens a list against 10.0, ratio 1.26"),
        (measured(BETTER, mean_tokens=7.9), "length drifted: 7.9 tokens a list against 10.0, ratio 0.79"),
        (measured(BETTER, duplicate_rate=0.11), "lists repeat themselves: 11.0% of lists"),
    ],
)
def test_each_fault_alone_refuses_and_says_why(challenger: Measured, reason: str) -> None:
    verdict = decide(CHAMPION, challenger, SETTINGS)
    assert not verdict.passed
    (only,) = verdict.reasons
    assert only.startswith(reason)


def test_every_fault_is_named() -> None:
    broken = measured(noisy(0.05), well_formed=0.5, forced=0.9, mean_tokens=40.0, duplicate_rate=0.9)
    assert len(decide(CHAMPION, broken, SETTINGS).reasons) == 5


def test_values_at_the_limits_pass() -> None:
    at_limits = measured(BETTER, well_formed=0.95, forced=0.5, mean_tokens=12.5, duplicate_rate=0.1)
    assert decide(CHAMPION, at_limits, SETTINGS).passed


def test_a_gain_within_the_noise_is_no_gain() -> None:
    rng = random.Random(2)
    champion = [rng.random() for _ in range(100)]
    lucky = [value + rng.gauss(0.01, 0.3) for value in champion]
    gain, error = paired_gain(champion, lucky)
    assert 0 < gain < 1.64 * error
    assert not decide(measured(champion), measured(lucky), SETTINGS).passed
    assert decide(measured(champion), measured(lucky), GateSettings(z=0.0)).passed


def test_a_gain_must_reach_the_least_that_is_asked_for() -> None:
    assert decide(CHAMPION, measured(BETTER), GateSettings(min_gain=0.015)).passed
    assert not decide(CHAMPION, measured(BETTER), GateSettings(min_gain=0.025)).passed


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=50))
def test_the_standard_error_is_that_of_the_paired_differences(pairs: list[tuple[float, float]]) -> None:
    gain, error = paired_gain([a for a, _ in pairs], [b for _, b in pairs])
    differences = [b - a for a, b in pairs]
    mean = sum(differences) / len(pairs)
    variance = sum((one - mean) ** 2 for one in differences) / (len(pairs) - 1)
    assert gain == pytest.approx(mean, abs=1e-12)
    assert error == pytest.approx((variance / len(pairs)) ** 0.5, abs=1e-12)


def test_policies_measured_on_different_prompts_are_not_compared() -> None:
    with pytest.raises(ValueError, match="judged on 400 and 3 prompts"):
        decide(CHAMPION, measured([0.1, 0.2, 0.3]), SETTINGS)


class ScriptedEngine:
    """Writes the same lists for every prompt in turn, and remembers with which seeds."""

    def __init__(self, lists: Sequence[RecommendedList]) -> None:
        self.lists = lists
        self.seeds: list[int | None] = []

    def encode_prompt(
        self, task: Task, query: str, related: Sequence[str] = (), session: Sequence[str] = (), response: str | None = None
    ) -> Prompt:
        return Prompt(task, query, tuple(map(ord, query)))

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding | Sequence[Decoding], samples: int = 1, *, logprobs: bool = False
    ) -> list[Generation]:
        assert not isinstance(decoding, Decoding)
        self.seeds += [one.seed for one in decoding]
        chosen = [self.lists[prompt.token_ids[0] % len(self.lists)] for prompt in prompts]
        return [
            Generation(one, (0,) * one.tokens, None, each, -1.0, one.tokens % 2)
            for one, each in zip(chosen, decoding, strict=True)
        ]


class ByLength:
    """A predictor for which an item is worth its length in hundredths."""

    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [np.array([len(item) / 100 for item in items]) for items in lists]


class Half(ByLength):
    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [one / 2 for one in super().score(queries, lists)]


LISTS = (
    RecommendedList(("aaaaa", "bbbbb"), (), True, 5),
    RecommendedList(("aaaaa", "AAAAA"), (), True, 6),  # serving would show one item
    RecommendedList(("aaaaa",), (), False, 3),
    RecommendedList(("",), (), False, 2),
)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(TASK, f"query {number}", (number,)) for number in range(count)]


def test_it_measures_what_serving_would_show() -> None:
    engine = ScriptedEngine(LISTS)
    found = evaluate(engine, ByLength(), Half(), prompts(8), Decoding(), GateSettings(batch=3, seed=40))
    both, one = 1 - 0.95**2, 0.05
    assert found.aec_predictor == pytest.approx((both + one + one + 0) / 4)
    assert found.judged == pytest.approx([1 - 0.975**2, 0.025, 0.025, 0.0] * 2)
    assert found.aec_judge == pytest.approx(np.mean(found.judged))
    assert (found.well_formed, found.mean_tokens, found.duplicate_rate, found.prompts) == (0.5, 4.0, 0.25, 8)
    assert found.forced == 0.5
    assert engine.seeds == list(range(40, 48))
    assert set(found.record()) == {
        "aec_predictor",
        "aec_judge",
        "well_formed",
        "forced",
        "mean_tokens",
        "duplicate_rate",
        "prompts",
    }


def test_without_prompts_there_is_no_verdict() -> None:
    with pytest.raises(ValueError, match="the gate needs prompts"):
        evaluate(ScriptedEngine(LISTS), ByLength(), Half(), [], Decoding(), SETTINGS)
