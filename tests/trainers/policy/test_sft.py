"""Supervised fine-tuning: what is read, what is learned, and that a small policy learns it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.policy.engines import Decoding
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.prompts import Prompter
from serving.policy.tasks import Task
from tests.support.toy_policy import ANIMALS, SMALL, TASK, TASKS, draw_annotations, make_policy
from trainers.policy.base import learn_vocabulary, make_base
from trainers.policy.sft import (
    Annotation,
    Example,
    SftSettings,
    annotation_texts,
    encode_examples,
    pad_batch,
    plan_batches,
    read_annotations,
    response_loss,
    train_sft,
)

sizes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20)


def test_annotations_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    path.write_text(
        json.dumps({"task": "suggest", "query": "cat", "items": ["a", "b"], "related": ["c"], "by": "someone"}) + "\n\n"
    )
    assert read_annotations(path) == [Annotation("suggest", "cat", ("a", "b"), ("c",))]


@pytest.mark.parametrize(
    "line", ["{", '{"task": "suggest", "query": "cat"}', '{"task": "suggest", "query": 3, "items": []}', '"cat"']
)
def test_a_line_that_is_no_annotation_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "annotations.jsonl"
    path.write_text('{"task": "suggest", "query": "cat", "items": ["a", "b"]}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"annotations.jsonl:2: not an annotation"):
        read_annotations(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="no annotation in it"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Annotation("dance", "cat", ("a", "b")), "task 'dance' is not in the settings; known: suggest"),
        (Annotation("suggest", "cat", ("a",)), "1 items, task suggest has n = 2"),
        (Annotation("suggest", "cat", ("a", "b"), auxiliary={"prefix": "x"}), "auxiliary .*prefix"),
    ],
)
def test_an_annotation_that_does_not_fit_its_task_is_refused(annotation: Annotation, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_examples([annotation], TASKS, Prompter(learn_vocabulary(["cat"], 300), 512))


def test_auxiliary_texts_come_first_in_the_order_of_the_task() -> None:
    task = Task(name="refine", n=1, template="{query}", auxiliary=("guiding", "suffix"))
    tokenizer = learn_vocabulary(["cat"], 300)
    annotation = Annotation("refine", "cat", ("short",), auxiliary={"suffix": "end", "guiding": "start"})
    (example,) = encode_examples([annotation], {"refine": task}, Prompter(tokenizer, 512))
    assert tokenizer.decode(example.response).split() == ["start<AUX>", "end<AUX>", "short<eos>"]


def test_an_example_is_the_prompt_that_serving_makes() -> None:
    prompter = Prompter(learn_vocabulary(["cat food"], 300), 512)
    annotation = Annotation("suggest", "cat", ("a", "b"), ("dog", "owl"), ("fox",), "An answer.")
    (example,) = encode_examples([annotation], TASKS, prompter)
    assert tuple(example.prompt) == prompter.encode_prompt(TASK, "cat", ["dog", "owl"], ["fox"], "An answer.").token_ids


@given(sizes, st.integers(1, 8), st.sampled_from([0.5, 1.0, 2.0]))
def test_an_epoch_holds_every_example_once_and_half_an_epoch_half_the_batches(
    lengths: list[tuple[int, int]], batch: int, epochs: float
) -> None:
    examples = [Example([number] * prompt, [number] * response) for number, (prompt, response) in enumerate(lengths)]
    batches = plan_batches(examples, SftSettings(epochs=epochs, batch=batch))
    an_epoch = math.ceil(len(examples) / batch)
    assert len(batches) == math.ceil(epochs * an_epoch)
    for start in range(0, len(batches) - an_epoch + 1, an_epoch):
        seen = [one.prompt[0] for part in batches[start : start + an_epoch] for one in part]
        assert sorted(seen) == list(range(len(examples)))


@given(sizes)
def test_only_response_tokens_are_labels(lengths: list[tuple[int, int]]) -> None:
    batch = [Example([5] * prompt, [7] * response) for prompt, response in lengths]
    ids, mask, labels = pad_batch(batch, pad=0, device="cpu")
    assert mask.sum(1).tolist() == [prompt + response for prompt, response in lengths]
    assert (labels != -100).sum(1).tolist() == [response for _, response in lengths]
    assert bool((ids[labels != -100] == 7).all())


def test_the_loss_is_the_cross_entropy_of_the_response_tokens(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    annotations = draw_annotations(6)
    model = AutoModelForCausalLM.from_pretrained(make_base(annotation_texts(annotations, TASKS), tmp_path, SMALL))
    batch = [Example([5, 6], [7, 8, 9]), Example([5, 6, 7], [8])]
    terms = []
    for one in batch:  # each alone, without padding, from the full logits
        logits = model(torch.tensor([one.prompt + one.response])).logits[0].log_softmax(-1)
        terms += [-logits[len(one.prompt) + step - 1, token] for step, token in enumerate(one.response)]
    assert response_loss(model, *pad_batch(batch, 0, "cpu")).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_a_policy_learns_to_write_lists_about_what_was_asked(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    engine = TransformersEngine.load(make_policy(tmp_path), "cpu")
    prompts = [engine.encode_prompt(TASK, animal) for animal in ANIMALS] * 10
    written = engine.generate(prompts, [Decoding(seed=row) for row in range(len(prompts))])
    good = [one.list.well_formed for one in written]
    about = [all(animal in item for item in one.list.items) for animal, one in zip(ANIMALS * 10, written, strict=True)]
    assert sum(good) / len(good) > 0.9
    assert sum(about) / len(about) > 0.7


def test_lora_trains_the_list_tokens_too_and_is_merged(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    annotations = draw_annotations(32)
    base = make_base(annotation_texts(annotations, TASKS), tmp_path / "base", SMALL)
    settings = SftSettings(epochs=2, batch=16, learning_rate=1e-2, lora_rank=2)
    measured = train_sft(base, annotations, TASKS, tmp_path / "out", settings, "cpu")
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (base, tmp_path / "out"))
    moved = (after.get_input_embeddings().weight - before.get_input_embeddings().weight).abs().sum(1).nonzero()[:, 0].tolist()
    assert moved == [2, 3]  # <SEP> and <AUX> alone
    assert not torch.equal(after.model.layers[0].mlp.up_proj.weight, before.model.layers[0].mlp.up_proj.weight)
    assert measured["steps"] == 4
    assert not list((tmp_path / "out").glob("adapter*"))


def test_lora_over_a_base_in_bf16_loses_no_small_update_when_it_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this learning rate updates are some 1e-5: added to bf16 weights around 0.02 most of them would be rounded away."""
    from safetensors.torch import load_file

    monkeypatch.setattr("serving.policy.engines.loading.choose_dtype", lambda device: torch.bfloat16)
    annotations = draw_annotations(32)
    base = make_base(annotation_texts(annotations, TASKS), tmp_path / "base", SMALL)
    train_sft(base, annotations, TASKS, tmp_path / "out", SftSettings(epochs=2, batch=16, learning_rate=1e-4, lora_rank=2), "cpu")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (after[name].float() - before[name].to(torch.bfloat16).float()).abs()
    assert 0 < float(moved.max()) < 1e-3
    assert float((moved > 0).float().mean()) > 0.99
