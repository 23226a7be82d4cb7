"""A list's log-probability is that of the decoding which drew it: equal to an enumeration of all that a tiny policy can write."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from serving.policy.engines import Decoding
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.list_form import FormName
from serving.policy.lists import encode_list
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task
from tests.support.letter_policy import make_letter_policy

PAIR = Task(name="pair", n=2, template="{query} ", max_item_tokens=3)
TRIPLE = Task(name="triple", n=3, template="{query} ", max_item_tokens=2)
NAMED = Task(name="named", n=2, template="{query} ", auxiliary=("prefix",), max_item_tokens=2, max_auxiliary_tokens=2)
CASES = [
    (PAIR, Decoding(temperature=1.0, top_p=1.0)),
    (PAIR, Decoding(temperature=0.7, top_p=1.0, redraws=2)),
    (PAIR, Decoding(temperature=0.8, top_p=0.9, redraws=3, max_new_tokens=3)),
    (TRIPLE, Decoding(temperature=1.3, top_p=0.8)),
    (TRIPLE, Decoding(temperature=0.9, top_p=0.85, redraws=3)),
    (NAMED, Decoding(temperature=0.5, top_p=0.97, redraws=1)),
]


@pytest.fixture(scope="module", params=["tokens", "lines"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    form: FormName = request.param
    yield make_letter_policy(tmp_path_factory.mktemp("letters"), form=form)
    torch.set_num_threads(threads)


@cache
def predict(engine: TransformersEngine, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return engine.model(torch.tensor([ids])).logits[0, -1].double()


class Enumeration:
    """Every list that a policy can write for a prompt with its probability, by following each draw there can be: a plain pass for
    each prefix, and the grammar written down for texts of single letters and spaces."""

    def __init__(self, engine: TransformersEngine, prompt: Prompt, decoding: Decoding) -> None:
        self.engine, self.prompt, self.decoding = engine, prompt, decoding
        self.task, self.form = prompt.task, engine.form
        self.texts = {index: engine.tokenizer.decode([index]) for index in range(len(engine.tokenizer))}
        self.letters = [index for index, text in self.texts.items() if index not in engine.form.special and text != "\n"]
        self.query = tuple(encode_list([prompt.query], [], engine.tokenizer)[:-1])
        self.found: dict[tuple[int, ...], float] = {}
        self._follow((), (), (), decoding.redraws, 1.0)

    def read(self, ids: Sequence[int]) -> str:
        return " ".join("".join(self.texts[index] for index in ids).split())

    def _follow(
        self, done: tuple[int, ...], texts: tuple[tuple[int, ...], ...], text: tuple[int, ...], left: int, p: float
    ) -> None:
        ids = (*done, *text)
        ends = self.form.find_ends(self.task)
        if len(texts) == len(ends) or len(ids) == self.decoding.max_new_tokens:
            self.found[ids] = self.found.get(ids, 0.0) + p
            return
        end, earlier = ends[len(texts)], texts[len(self.task.auxiliary) :]
        item = len(texts) >= len(self.task.auxiliary)
        for token, share in self._draw(ids, self._allow(text, earlier, end, item, left)).items():
            if token != end:
                self._follow(done, texts, (*text, token), left, p * share)
            elif item and text in (*earlier, self.query):
                self._follow(done, texts, (), left - 1, p * share)
            else:
                self._follow((*ids, end), (*texts, text), (), left, p * share)

    def _allow(self, text: tuple[int, ...], earlier: Sequence[tuple[int, ...]], end: int, item: bool, left: int) -> list[int]:
        limit = self.task.max_item_tokens if item else self.task.max_auxiliary_tokens
        repeats = [*earlier, self.query] if item else []
        banned = {self.read(ids) for ids in repeats}

        def ends(ids: tuple[int, ...]) -> bool:
            return (bool(self.read(ids)) and self.read(ids) not in banned) or (left > 0 and ids in repeats)

        allowed = [end] if ends(text) else []
        if len(text) < limit - 1:
            allowed += [one for one in self.letters if len(text) < limit - 2 or ends((*text, one))]
        return allowed

    def _draw(self, ids: tuple[int, ...], allowed: Sequence[int]) -> dict[int, float]:
        """The share of each token: mask, temperature, top-p."""
        shares = (predict(self.engine, (*self.prompt.token_ids, *ids))[list(allowed)] / self.decoding.temperature).softmax(-1)
        values, order = shares.sort(descending=True)
        inside = values.cumsum(-1) - values < self.decoding.top_p
        return {allowed[int(order[rank])]: float(values[rank] / values[inside].sum()) for rank in inside.nonzero()[:, 0]}


@pytest.mark.parametrize(("task", "decoding"), CASES, ids=lambda one: one.name if isinstance(one, Task) else f"R{one.redraws}")
def test_the_log_probability_equals_enumeration(engine: TransformersEngine, task: Task, decoding: Decoding) -> None:
    """In one batch: rows of several queries (also one that is no item), each with its own seed, redrawn items and all."""
    prompts = [engine.encode_prompt(task, query) for query in ("ab", "bbbb")]
    asked = [prompt for prompt in prompts for _ in range(8)]
    lists = engine.generate(asked, [replace(decoding, seed=seed) for seed in range(len(asked))], logprobs=True)
    for prompt, start in zip(prompts, range(0, len(asked), 8), strict=True):
        expected = Enumeration(engine, prompt, decoding).found
        assert sum(expected.values()) == pytest.approx(1.0, abs=1e-9)
        for one in lists[start : start + 8]:
            assert one.logprob == pytest.approx(math.log(expected[one.token_ids]), abs=1e-5)


def test_lists_are_drawn_as_often_as_they_say(engine: TransformersEngine) -> None:
    decoding = Decoding(temperature=0.6, top_p=0.95, redraws=2)
    prompt = engine.encode_prompt(PAIR, "ab")
    torch.manual_seed(0)
    drawn = [one.token_ids for one in engine.generate([prompt], decoding, 4000)]
    for ids, p in sorted(Enumeration(engine, prompt, decoding).found.items(), key=lambda pair: -pair[1])[:8]:
        assert abs(drawn.count(ids) / 4000 - p) < 5 * math.sqrt(p * (1 - p) / 4000)


def test_a_greedy_list_is_certain_and_other_lists_have_no_figure_unless_asked(engine: TransformersEngine, tmp_path: Path) -> None:
    prompt = engine.encode_prompt(PAIR, "ab")
    (greedy,) = engine.generate([prompt], Decoding(greedy=True, redraws=4), logprobs=True)
    (plain,) = engine.generate([prompt], Decoding(redraws=4))
    assert (greedy.logprob, plain.logprob) == (0.0, None)
