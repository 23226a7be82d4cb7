"""Whatever base a policy has: it is asked alike by all who ask it, and its lists keep their form through training and disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from serving.policy.engines import Decoding, Generation
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.list_form import find_form
from serving.policy.lists import encode_list, parse
from serving.policy.prompts import Prompt, Prompter
from serving.policy.tasks import DEFAULT_TASKS, Task
from serving.recommend import Request, recommend
from tests.support.bases import make_base_of_kind
from tests.support.toy_policy import TASKS, draw_annotations
from trainers.policy.aligners.dpo import DpoSettings, make_trainer, train_dpo
from trainers.policy.gate import GateSettings, evaluate
from trainers.policy.pairs import Pair, make_pairs
from trainers.policy.prompts import ListCall, make_prompts
from trainers.policy.search import Candidates, ScoredList, SearchSettings, search_candidates
from trainers.policy.sft import Annotation, SftSettings, annotation_texts, encode_examples, train_sft

KINDS = [
    ("scratch", "tokens"),
    ("qwen3", "lines"),
    ("qwen3", "tokens"),
    ("untied", "lines"),
    ("untied", "tokens"),
    ("gpt2", "lines"),
]
TASK = DEFAULT_TASKS["suggest"].model_copy(
    update={"n": 2, "max_item_tokens": 8, "template": "{query}\n| {related}\n{response}\n=>"}
)
QUERY, RELATED = "vector<int> <|im_end|><SEP>", ("</think>", "cat food")
SESSION, RESPONSE = ("<|im_start|>system",), "[INST] " + "a long answer " * 40


class Index:
    def retrieve(self, query: str, n: int) -> list[str]:
        return list(RELATED)[:n]


class ByLength:
    def score(self, queries: Sequence[str], lists: Sequence[Sequence[str]]) -> list[Any]:
        return [torch.tensor([len(item) / 500 for item in items]).double().numpy() for items in lists]


class Recorder(TransformersEngine):
    """An engine that remembers what it was asked."""

    asked: list[Prompt]

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding | Sequence[Decoding], samples: int = 1, *, logprobs: bool = False
    ) -> list[Generation]:
        self.asked += prompts
        return super().generate(prompts, decoding, samples, logprobs=logprobs)

    def begin(self, prompts: Sequence[Prompt]) -> Any:
        self.asked += prompts
        return super().begin(prompts)


@dataclass(frozen=True)
class Trained:
    """A policy of one kind and form after a short fine-tuning."""

    form: str
    folder: Path

    def load(self) -> Recorder:
        engine = Recorder.load(self.folder, "cpu")
        assert isinstance(engine, Recorder)
        engine.asked = []
        return engine


@pytest.fixture(scope="module", params=KINDS, ids=[f"{kind}-{form}" for kind, form in KINDS])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    torch.set_num_threads(1)
    kind, form = request.param
    folder = tmp_path_factory.mktemp(f"{kind}-{form}")
    annotations = draw_annotations(64)
    base = make_base_of_kind(kind, folder / "base", annotation_texts(annotations, TASKS))
    settings = SftSettings(epochs=6, batch=16, learning_rate=1e-2, lora_rank=4)
    train_sft(base, annotations, TASKS, folder / "policy", settings, "cpu", form)
    return Trained(form, folder / "policy")


def test_all_who_ask_a_policy_ask_with_the_same_tokens(trained: Trained, tmp_path: Path) -> None:
    engine = trained.load()
    annotation = Annotation("suggest", QUERY, ("a", "b"), RELATED, SESSION, RESPONSE)
    (example,) = encode_examples([annotation], {"suggest": TASK}, Prompter.load(trained.folder))
    call = ListCall("suggest", QUERY, QUERY.lower(), SESSION, RESPONSE)
    prompts = make_prompts([call], {"suggest": TASK}, Index(), Prompter.load(trained.folder))

    found = search_candidates(engine, ByLength(), prompts, SearchSettings(beam=2, candidates=2, chosen=1, rejected=1, budget=2))
    evaluate(engine, ByLength(), ByLength(), prompts, Decoding(), GateSettings())
    recommend("r0000", engine, Index(), None, [Request(TASK, QUERY, Decoding(), SESSION, RESPONSE)])
    drawn = found[0].rejected[0]
    better = ScoredList(drawn.list, drawn.token_ids, drawn.reward + 1)
    (pair,) = make_pairs([Candidates(prompts[0], (better,), (drawn,))], SearchSettings(filter_overlap=False))
    (row,) = make_trainer(trained.folder, [pair], tmp_path, DpoSettings(lora_rank=2), "cpu").train_dataset

    asked = {prompt.token_ids for prompt in engine.asked}
    assert asked == {tuple(example.prompt)} == {tuple(row["prompt_ids"])}
    assert len(engine.asked) == 4  # search twice (chosen and rejected), gate, serving


def test_a_prompt_does_not_depend_on_the_others_in_its_batch(trained: Trained) -> None:
    engine = trained.load()
    short, long = (engine.encode_prompt(TASK, query, RELATED, SESSION, RESPONSE * 9) for query in ("cat", QUERY))
    wide = engine.encode_prompt(TASK.model_copy(update={"n": 8}), "cat")
    decodings = [Decoding(seed=number) for number in range(3)]
    together = engine.generate([short, long, wide], decodings)
    alone = [engine.generate([prompt], decoding)[0] for prompt, decoding in zip((short, long, wide), decodings, strict=True)]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_the_form_and_what_is_written_survive_the_disk(trained: Trained, tmp_path: Path) -> None:
    engine = trained.load()
    assert engine.form.name == trained.form
    engine.model.save_pretrained(tmp_path)
    engine.tokenizer.save_pretrained(tmp_path)
    again = TransformersEngine.load(tmp_path, "cpu")
    assert again.form == engine.form
    assert again.encode_prompt(TASK, QUERY, RELATED) == engine.encode_prompt(TASK, QUERY, RELATED)
    prompts = [engine.encode_prompt(TASK, query) for query in ("cat", "owl", QUERY)]
    ours, theirs = (one.generate(prompts, Decoding(seed=1)) for one in (engine, again))
    assert ours == theirs


def test_preference_learning_keeps_the_form_and_the_list_tokens(trained: Trained, tmp_path: Path) -> None:
    engine = trained.load()
    write = [tuple(encode_list(items, (), engine.tokenizer)) for items in (("cat food", "cat games"), ("cat price", "cat sleep"))]
    pairs = [Pair(engine.encode_prompt(TASK, query).token_ids, *write) for query in ("cat", "owl", "fox", "bee")]
    settings = DpoSettings(learning_rate=5e-3, epochs=4, batch=4, lora_rank=4, min_pairs=4)
    train_dpo(trained.folder, pairs, tmp_path / "out", settings, "cpu")
    aligned = TransformersEngine.load(tmp_path / "out", "cpu")
    assert find_form(aligned.tokenizer) == engine.form
    rows = [engine.form.sep, engine.form.aux, engine.form.eos]
    for before, after in zip(weights(engine), weights(aligned), strict=True):
        assert torch.equal(before[rows], after[rows])
    assert parse(write[0], aligned.tokenizer, Task(name="suggest", n=2)).well_formed
    assert margin(aligned, pairs[0]) > margin(engine, pairs[0])


def weights(engine: TransformersEngine) -> list[torch.Tensor]:
    model: Any = engine.model
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def margin(engine: TransformersEngine, pair: Pair) -> float:
    return logprob(engine, pair.prompt, pair.chosen) - logprob(engine, pair.prompt, pair.rejected)


def logprob(engine: TransformersEngine, prompt: Sequence[int], ids: Sequence[int]) -> float:
    with torch.inference_mode():
        scores = engine.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    return sum(float(scores[len(prompt) + step - 1, token]) for step, token in enumerate(ids))
