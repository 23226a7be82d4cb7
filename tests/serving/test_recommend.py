"""From requests to lists that can be shown, in one batch whatever their tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from serving.policy.engines import Decoding
from serving.policy.lists import RecommendedList
from serving.policy.tasks import DEFAULT_TASKS, Task
from serving.recommend import Request, recommend
from tests.support.scripted_engine import ScriptedEngine, numbered_list

SUGGEST = Task(name="suggest", n=3, template="{query} | {related} | {session} | {response}")
HINT = Task(name="hint", n=1, template="hint {query}", max_related=0)


class Successors:
    """An index that knows some queries."""

    def __init__(self, known: dict[str, list[str]]) -> None:
        self.known = known

    def retrieve(self, query: str, n: int) -> list[str]:
        return self.known.get(query, [])[:n]


class LengthScorer:
    """Predicts by item length, so that a mix-up between lists shows."""

    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[np.ndarray]:
        return [
            np.array([len(query) / 100 + len(item) / 1000 for item in items]) for query, items in zip(queries, lists, strict=True)
        ]


def script(*items: str, well_formed: bool = False) -> ScriptedEngine:
    return ScriptedEngine(lambda prompt, task: RecommendedList(items, (), well_formed, 9))


def ask(query: str, task: Task = SUGGEST, **more: object) -> Request:
    return Request(task, query, Decoding(seed=1), **more)  # type: ignore[arg-type]


def test_prompts_hold_side_information_from_index_and_request() -> None:
    engine = ScriptedEngine()
    index = Successors({"shoes": ["socks", "boots"]})
    recommend("r0000", engine, index, None, [ask("shoes", session=("hats",), response="Worn."), ask("shoes", HINT)])
    assert engine.batches == [["shoes | socks ; boots | hats | Worn.", "hint shoes"]]


def test_answers_belong_to_their_requests() -> None:
    engine = ScriptedEngine()
    requests = [ask("a" * size, task) for size, task in ((1, SUGGEST), (2, HINT), (3, DEFAULT_TASKS["refine"]))]
    answers = recommend("r0003", engine, None, LengthScorer(), requests)
    assert [len(answer.items) for answer in answers] == [3, 1, 8]
    assert {answer.release for answer in answers} == {"r0003"}
    assert answers[2].auxiliary == {"guiding": "text guiding", "prefix": "text prefix", "suffix": "text suffix"}
    for request, answer in zip(requests, answers, strict=True):
        assert answer.predicted == tuple(round(len(request.query) / 100 + len(item) / 1000, 6) for item in answer.items)
        assert (answer.form, answer.decoding, answer.logprob) == ("well_formed", request.decoding, -1.5)


def test_without_predictor_nothing_is_predicted() -> None:
    (answer,) = recommend("r", ScriptedEngine(), None, None, [ask("q")])
    assert answer.predicted is None


@pytest.mark.parametrize(
    ("written", "shown", "own"),
    [
        (("a", "", "b"), ("a", "b"), (True, False)),
        (("a", "A ", "b"), ("a", "b"), (True, False)),
        (("a", "b", "c", "d"), ("a", "b", "c"), (True, True, True)),
        (("a", "b\ufffd"), ("a",), (True,)),
    ],
)
def test_an_ill_formed_list_is_repaired_and_says_which_items_are_where_the_policy_wrote_them(
    written: tuple[str, ...], shown: tuple[str, ...], own: tuple[bool, ...]
) -> None:
    (answer,) = recommend("r", script(*written), None, None, [ask("q")])
    assert (answer.items, answer.form, answer.written) == (shown, "repaired", own)
    assert answer.logprob == -1.5


def test_a_well_formed_list_with_a_repetition_counts_as_repaired() -> None:
    (answer,) = recommend("r", script("a", "A", "b", well_formed=True), None, None, [ask("q")])
    assert (answer.items, answer.form) == (("a", "b"), "repaired")


def test_with_no_usable_item_users_own_next_queries_are_shown() -> None:
    index = Successors({"q": ["x\ny", "z", "z ", "v", "w"]})
    (answer,) = recommend("r", script("", "\ufffd"), index, LengthScorer(), [ask("q")])
    assert (answer.items, answer.form, answer.logprob, answer.decoding) == (("x y", "z", "v"), "fallback", None, None)
    assert answer.predicted is not None
    assert len(answer.predicted) == 3
    assert answer.written == (False, False, False)


def test_a_list_says_how_often_the_grammar_changed_a_draw() -> None:
    engine = ScriptedEngine()
    engine.forced = 4
    (answer,) = recommend("r", engine, None, None, [ask("q")])
    assert (answer.forced, answer.written, answer.form) == (4, (True, True, True), "well_formed")


def test_with_nothing_at_all_the_query_itself_is_shown() -> None:
    (answer,) = recommend("r", script(), None, None, [ask("  red\nshoes ")])
    assert (answer.items, answer.form) == (("red shoes",), "fallback")


def test_one_batch_is_one_call_to_the_engine() -> None:
    engine = ScriptedEngine(numbered_list)
    recommend("r", engine, None, None, [ask(str(number)) for number in range(17)])
    assert [len(batch) for batch in engine.batches] == [17]
