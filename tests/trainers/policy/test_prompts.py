"""Prompts from the lake: the gate's queries are not learned from, and prompts are those that serving renders."""

from __future__ import annotations

import json
from datetime import date

from hypothesis import given
from hypothesis import strategies as st

from serving.policy.prompts import Prompter
from serving.policy.tasks import Task
from streams.lake.files import Lake
from tests.support.lake_days import write_impressions
from tests.support.models import make_tiny_tokenizer
from tests.support.toy_policy import TASK, TASKS
from trainers.policy.prompts import (
    TEST_SHARE,
    ListCall,
    describe_calls,
    is_test,
    make_prompts,
    pick_test,
    pick_training,
    read_calls,
)

PROMPTER = Prompter(make_tiny_tokenizer(), 512)
DAY = date(2026, 3, 1)
queries = st.lists(st.text(min_size=1, max_size=8), max_size=60)


def ask(query: str, task: str = "suggest") -> ListCall:
    return ListCall(task, query, query, (), None)


@given(queries, st.integers(0, 20), st.integers(0, 5))
def test_no_query_is_both_learned_from_and_measured_with(texts: list[str], count: int, seed: int) -> None:
    asked = [ask(text) for text in texts]
    training, test = pick_training(asked, count, seed), pick_test(asked, 50)
    assert not {one.query_norm for one in training} & {one.query_norm for one in test}
    assert len({(one.task, one.query_norm) for one in training}) == len(training) <= count
    assert {one.query_norm for one in training} <= set(texts)


@given(queries)
def test_every_query_is_in_one_part(texts: list[str]) -> None:
    asked = [ask(text) for text in texts]
    sides = pick_training(asked, 1000, 0), pick_test(asked, 1000)
    assert {one.query_norm for side in sides for one in side} == set(texts)
    assert len(sides[1]) == sum(is_test(text) for text in texts)


def test_about_a_quarter_of_the_queries_is_the_gates() -> None:
    share = sum(is_test(f"query {number}") for number in range(4000)) / 4000
    assert abs(share - TEST_SHARE) < 0.03


def test_other_seeds_pick_others_and_the_same_seed_the_same() -> None:
    asked = [ask(f"query {number}") for number in range(300)]
    assert pick_training(asked, 50, 1) == pick_training(asked, 50, 1)
    assert pick_training(asked, 50, 1) != pick_training(asked, 50, 2)


def test_the_newest_calls_measure() -> None:
    gates = [text for text in (f"query {number}" for number in range(400)) if is_test(text)]
    assert [one.query for one in pick_test([ask(text) for text in gates], 10)] == gates[-10:]


def test_a_prompt_is_what_serving_rendered(tmp_path) -> None:  # type: ignore[no-untyped-def]
    extra = json.dumps({"context": {"session": ["earlier one", 3]}, "response": "an answer"})
    write_impressions(
        tmp_path, DAY, [{"query": "Cat  Food", "items": ["a", "b"], "extra": extra}, {"query": "x", "task": "gone"}]
    )
    task = Task(name="suggest", n=2, template="{query}\n| {related}\n{session}\n{response}\n=>")

    class Index:
        def retrieve(self, query: str, n: int) -> list[str]:
            return [f"next to {query}"][:n]

    asked = read_calls(Lake.local(tmp_path), date(2026, 3, 2), 14, "suggest")
    assert [one.query_norm for one in asked] == ["cat food", "x"]
    made = make_prompts(asked, {"suggest": task}, Index(), PROMPTER)
    assert made == [PROMPTER.encode_prompt(task, "Cat  Food", ["next to Cat  Food"], ["earlier one"], "an answer")]
    alone = make_prompts(asked, TASKS, None, PROMPTER)
    assert alone == [PROMPTER.encode_prompt(TASK, "Cat  Food", [], ["earlier one"], "an answer")]


def test_days_outside_the_window_are_not_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_impressions(tmp_path, date(2026, 2, 14), [{"query": "old"}])
    write_impressions(tmp_path, DAY, [{"query": "new"}])
    assert [one.query for one in read_calls(Lake.local(tmp_path), date(2026, 3, 2), 15, "suggest")] == ["new"]


def test_hostile_extras_are_only_data(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = [
        {"query": f"q{n}", "extra": text}
        for n, text in enumerate(["[1]", "{}", '{"context": 3}', '{"context": {"session": "x"}}', ""])
    ]
    write_impressions(tmp_path, DAY, rows)
    assert [(one.session, one.response) for one in read_calls(Lake.local(tmp_path), date(2026, 3, 2), 1, "suggest")] == [
        ((), None)
    ] * 5


def test_an_impression_without_a_task_is_learned_from_as_the_default_task(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_impressions(tmp_path, DAY, [{"query": f"q{n}", "task": None} for n in range(3)] + [{"query": "h", "task": "hint"}])
    calls = read_calls(Lake.local(tmp_path), date(2026, 3, 2), 1, "suggest")
    assert [one.task for one in calls] == ["suggest"] * 3 + ["hint"]
    assert len(make_prompts(calls, TASKS, None, PROMPTER)) == 3


def test_lists_of_no_use_are_counted_with_the_reason() -> None:
    calls = [ask(f"query {n}", "ad") for n in range(157)] + [ask("a", "suggest"), ask("a", "suggest"), ask("b", "suggest")]
    said = describe_calls(calls, TASKS)
    assert said.startswith("160 lists, 157 of the task 'ad', which is not in the settings; 2 different queries of the 3 others, ")
