"""The cold-start gate: what a first policy writes is measured, and each broken limit says what to change."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import replace

import pytest

from serving.policy.engines import Decoding, Generation
from serving.policy.lists import RecommendedList
from serving.policy.tasks import Task
from tests.support.scripted_engine import ScriptedEngine
from trainers.policy.cold_start.gate import ColdMeasured, ColdStartSettings, decide_cold, summarise, write_lists
from trainers.policy.cold_start.relatedness import Items, compare_characters

SETTINGS = ColdStartSettings()
TASK = Task(name="suggest", n=2, template="{query}")
WORDS = [first + last for first in ("lis", "por", "mad", "rom", "ber", "osl") for last in ("bon", "to", "rid", "lin")]
MEASURES = [("letters", compare_characters)]
GOOD = ColdMeasured(160, 16, 20, 0.05, 0.0, 0.9, 0.03, "letters", 10.0, 11.0, 1.2, 3.4)


def written(script: Callable[[str], Items], *, well_formed: bool = True) -> ColdMeasured:
    """What the gate measures of an engine that answers by `script`, as if all else were well."""
    engine = ScriptedEngine(lambda prompt, task: RecommendedList(script(prompt), (), well_formed, 10))
    prompts = [ScriptedEngine().encode_prompt(TASK, word) for word in WORDS]
    generations = write_lists(engine, prompts, Decoding(), SETTINGS)
    return replace(summarise(prompts, generations, 3.0, MEASURES, SETTINGS), annotations=160)


def reasons_of(measured: ColdMeasured) -> str:
    return "; ".join(decide_cold(measured, SETTINGS).reasons)


def test_lists_about_their_query_pass() -> None:
    assert decide_cold(written(lambda query: (f"{query} weather", f"{query} map")), SETTINGS).passed
    assert decide_cold(GOOD, SETTINGS).passed


def test_gibberish_is_refused() -> None:
    rng = random.Random(3)
    found = written(lambda _: tuple("".join(rng.choices(string.ascii_lowercase, k=9)) for _ in range(2)))
    assert "lists have little to do with their queries" in reasons_of(found)


def test_lists_that_do_not_depend_on_the_query_are_refused() -> None:
    assert "lists have little to do with their queries" in reasons_of(written(lambda _: ("weather", "news today")))


def test_repetition_is_refused_even_where_it_repeats_the_query() -> None:
    found = written(lambda query: (f"{query * 3}", f"{query} map"))
    assert found.repetitive == 0.5
    assert "texts repeat themselves: 50.0% of them" in reasons_of(found)


def test_lists_that_do_not_keep_the_form_are_refused() -> None:
    found = written(lambda query: (f"{query} weather",), well_formed=False)
    assert found.forced == 1.0
    assert "the form is not learned: 100.0% of lists" in reasons_of(replace(found, loss=1.0, base_loss=2.0))
    assert "the form is not followed: 100.0% of lists" in reasons_of(found)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"annotations": 20}, "too few annotations to judge: 20, at least 40 needed"),
        ({"forced": 0.6}, "add annotations, or raise sft.epochs or sft.learning_rate"),
        ({"repetitive": 0.06}, "lower sft.learning_rate"),
        ({"relatedness": 0.55, "relatedness_error": 0.001}, "check that annotated items belong to their queries"),
        ({"mean_tokens": 72.0}, "72.0 tokens against 11.0, ratio 6.55"),
        ({"mean_tokens": 2.0}, "ratio 0.18"),
        ({"loss": 3.5}, "held-out loss 3.500 against 3.400 of the base"),
    ],
)
def test_each_broken_limit_is_a_reason_that_says_what_to_change(change: dict[str, float], said: str) -> None:
    verdict = decide_cold(replace(GOOD, **change), SETTINGS)  # type: ignore[arg-type]
    assert not verdict.passed
    assert len(verdict.reasons) == 1
    assert said in verdict.reasons[0]


def test_a_policy_that_learned_nothing_has_no_loss_to_compare() -> None:
    assert decide_cold(replace(GOOD, loss=None, base_loss=None, annotations=20), SETTINGS).passed


@pytest.mark.parametrize(
    "change",
    [{"forced": 0.6}, {"repetitive": 0.06}, {"relatedness": 0.55, "relatedness_error": 0.001}, {"mean_tokens": 72.0}],
    ids=lambda change: next(iter(change)),
)
def test_one_that_is_only_shown_examples_is_told_what_helps_without_training(change: dict[str, float]) -> None:
    (reason,) = decide_cold(replace(GOOD, loss=None, base_loss=None, **change), SETTINGS).reasons  # type: ignore[arg-type]
    assert "raise policy.shots" in reason
    assert "sft.learning_rate" not in reason


def test_without_annotations_there_is_no_length_to_compare_with() -> None:
    assert decide_cold(replace(GOOD, loss=None, base_loss=None, annotated_tokens=None, mean_tokens=72.0), SETTINGS).passed


def test_the_first_measure_that_sees_the_relation_is_enough_and_later_ones_are_not_asked() -> None:
    prompts = [ScriptedEngine().encode_prompt(TASK, word) for word in WORDS]
    asked: list[str] = []

    def blind(pairs: object) -> list[float]:
        asked.append("blind")
        return [0.0] * len(list(pairs))  # type: ignore[call-overload]

    def expensive(pairs: object) -> list[float]:
        asked.append("expensive")
        return [0.0] * len(list(pairs))  # type: ignore[call-overload]

    measures = [("blind", blind), ("letters", compare_characters), ("expensive", expensive)]
    lists = [Generation(RecommendedList((f"{word} map",), (), True, 3), (1,), None, Decoding(), -1.0, 0) for word in WORDS]
    found = summarise(prompts, lists, 1.0, measures, SETTINGS)
    assert (found.relatedness_by, asked) == ("letters", ["blind"])


def test_each_list_has_random_numbers_of_its_own_and_batches_are_bounded() -> None:
    engine = ScriptedEngine()
    prompts = [engine.encode_prompt(TASK, str(number)) for number in range(20)]
    lists = write_lists(engine, prompts, Decoding(), SETTINGS)
    assert [one.decoding.seed for one in lists] == list(range(20))
    assert [len(batch) for batch in engine.batches] == [16, 4]


def test_the_record_is_plain_json() -> None:
    assert replace(GOOD, relatedness_error=float("inf")).record()["relatedness_error"] is None
