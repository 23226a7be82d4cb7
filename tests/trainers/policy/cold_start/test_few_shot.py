"""A first policy without training: which lists it is shown, and that everybody who asks it shows the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.engines import Decoding
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.examples import read_examples
from serving.policy.prompts import Prompter
from streams.events.normal_form import normalise
from tests.support.bases import make_base_of_kind
from tests.support.toy_policy import TASK, TASKS, draw_annotations
from trainers.policy.cold_start.few_shot import choose_examples, save_few_shot
from trainers.policy.sft import Annotation, annotation_texts

queries = st.lists(st.tuples(st.sampled_from(["suggest", "hint"]), st.sampled_from(["a", "A", "b", "c", "d", "e"])), max_size=20)


@given(drawn=queries, shots=st.integers(0, 5), seed=st.integers(0, 3))
def test_each_task_shows_different_queries_and_tests_none_of_them(drawn: list[tuple[str, str]], shots: int, seed: int) -> None:
    annotations = [Annotation(task, query, (f"item {number}",)) for number, (task, query) in enumerate(drawn)]
    found = choose_examples(annotations, shots, seed)
    for task in ("suggest", "hint"):
        shown = [normalise(one.query) for one in found.examples if one.task == task]
        assert len(shown) == len(set(shown)) == min(shots, len({normalise(query) for name, query in drawn if name == task}))
    hidden = {normalise(one.query) for one in found.examples}
    assert [one for one in annotations if normalise(one.query) not in hidden] == list(found.tested)
    assert found == choose_examples(annotations, shots, seed)


@pytest.mark.parametrize("kind", ["qwen3", "gpt2"])
def test_the_saved_policy_is_the_base_and_is_asked_with_its_examples(kind: str, tmp_path: Path) -> None:
    import torch

    annotations = draw_annotations(8)
    base = make_base_of_kind(kind, tmp_path / "base", annotation_texts(annotations, TASKS))
    policy = tmp_path / "policy"
    policy.mkdir()
    assert save_few_shot(base, annotations[:2], TASKS, policy, "cpu") == {"examples": 2.0}
    assert [one.texts for one in read_examples(policy)["suggest"]] == [one.items for one in annotations[:2]]
    engine = TransformersEngine.load(policy, "cpu")
    prompt = engine.encode_prompt(TASK, "emu")
    assert prompt == Prompter.load(policy).encode_prompt(TASK, "emu")
    text = engine.tokenizer.decode(prompt.token_ids)
    places = [text.index(one) for one in (*annotations[0].items, *annotations[1].items, "emu")]
    assert places == sorted(places)
    assert engine.generate([prompt], Decoding(seed=0))[0].list.well_formed
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in engine.model.state_dict().items())
