"""The engine that runs a policy: its loop equals transformers' own, and what it reports equals a plain forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serving.policy.engines import Decoding, Generation
from serving.policy.engines.grammar import allow
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.lists import find_duplicates
from serving.policy.prompts import Prompt
from serving.policy.tasks import Task
from streams.events.normal_form import normalise
from tests.support.letter_policy import make_letter_policy
from tests.support.models import encode_texts, make_tiny_policy

PROMPTS = ["red shoes =>", "how to clean white shoes and keep them clean =>", "x"]
SUGGEST = Task(name="suggest", n=3, template="{query} =>", max_item_tokens=6)
REFINE = Task(name="refine", n=2, template="{query} =>", auxiliary=("prefix",), max_item_tokens=8, max_auxiliary_tokens=8)
GREEDY = Decoding(greedy=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersEngine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield TransformersEngine.load(make_tiny_policy(tmp_path_factory.mktemp("policy")), "cpu")
    torch.set_num_threads(threads)


def write(
    engine: TransformersEngine,
    texts: Sequence[str],
    decoding: Decoding | Sequence[Decoding],
    task: Task = SUGGEST,
    samples: int = 1,
) -> list[Generation]:
    return engine.generate(encode_texts(texts, task, engine.tokenizer), decoding, samples)


def logprob_of(engine: TransformersEngine, prompt: str, ids: Sequence[int]) -> float:
    return sum_logprobs(engine, engine.tokenizer(prompt)["input_ids"], ids)


def sum_logprobs(engine: TransformersEngine, before: Sequence[int], ids: Sequence[int]) -> float:
    """Sum of log p(token | all before) by one forward pass without cache or padding."""
    with torch.inference_mode():
        scores = engine.model(torch.tensor([[*before, *ids]])).logits[0].log_softmax(-1)
    return sum(float(scores[len(before) - 1 + step, token]) for step, token in enumerate(ids))


def boost_ends(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Make list tokens as likely as in a trained policy, by their rows of the output layer."""
    weight = engine.model.lm_head.weight.clone()
    weight[[engine.form.sep, engine.form.eos, engine.form.aux]] *= times
    monkeypatch.setitem(engine.model.lm_head._parameters, "weight", torch.nn.Parameter(weight, requires_grad=False))


@pytest.mark.parametrize("times", [1.0, 4.0])
def test_greedy_equals_transformers_generate(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Both take the likeliest of the tokens that the grammar allows."""
    boost_ends(engine, monkeypatch, times)
    for prompt, generation in zip(encode_texts(PROMPTS, SUGGEST, engine.tokenizer), write(engine, PROMPTS, GREEDY), strict=True):
        inputs = torch.tensor([prompt.token_ids])
        theirs = engine.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=SUGGEST.max_new_tokens,
            prefix_allowed_tokens_fn=partial(allow_after, engine, prompt),
        )
        assert list(generation.token_ids) == theirs[0, inputs.shape[1] :].tolist()


def allow_after(engine: TransformersEngine, prompt: Prompt, _row: int, ids: torch.Tensor) -> list[int]:
    """The tokens that may follow a prompt and a part of its list."""
    draft = engine.begin([prompt]).drafts[0].copy(0)
    for token in ids[len(prompt.token_ids) :].tolist():
        draft.add(token)
    return [int(token) for token in allow(engine.grammar, [draft.choose(redrawing=False)])[0].nonzero()[:, 0]]


@pytest.mark.parametrize(
    "decoding", [GREEDY, Decoding(temperature=0.8, top_p=0.9, seed=3), Decoding(temperature=2.0, top_p=1.0, seed=4)]
)
def test_logprob_equals_a_forward_pass(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, decoding: Decoding) -> None:
    boost_ends(engine, monkeypatch, 3.0)
    for prompt, generation in zip(PROMPTS, write(engine, PROMPTS, decoding), strict=True):
        assert generation.policy_logprob == pytest.approx(logprob_of(engine, prompt, generation.token_ids), abs=1e-3)
        assert generation.decoding == decoding


@pytest.mark.parametrize("start", ["", "You write queries that users are most likely to click. Search query:"])
def test_a_shared_start_changes_nothing_but_the_work(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    boost_ends(engine, monkeypatch, 3.0)
    read: list[int] = []
    hook = engine.model.get_input_embeddings().register_forward_hook(
        lambda _module, inputs, _output: read.append(inputs[0].numel())
    )
    prompts = [start + prompt for prompt in PROMPTS]
    together = write(engine, prompts, Decoding(temperature=1.2, top_p=0.9, seed=3))
    hook.remove()
    lengths = [len(engine.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    assert read[0] == (3 * max(lengths) if not start else len(engine.tokenizer(start)["input_ids"]))
    for prompt, generation in zip(prompts, together, strict=True):
        assert generation.policy_logprob == pytest.approx(logprob_of(engine, prompt, generation.token_ids), abs=1e-3)
        (alone,) = write(engine, [prompt], generation.decoding)
        assert alone.token_ids == generation.token_ids


def test_rows_of_one_batch_have_their_own_task_and_decoding(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    boost_ends(engine, monkeypatch, 3.0)
    tasks = [SUGGEST, REFINE, SUGGEST]
    decodings = [Decoding(seed=1), GREEDY, Decoding(temperature=0.5, top_p=1.0, seed=2, max_new_tokens=2)]
    prompts = [encode_texts([text], task, engine.tokenizer)[0] for text, task in zip(PROMPTS, tasks, strict=True)]
    together = engine.generate(prompts, decodings)
    for prompt, task, decoding, generation in zip(PROMPTS, tasks, decodings, together, strict=True):
        (alone,) = write(engine, [prompt], decoding, task)
        assert generation.token_ids == alone.token_ids
    assert len(together[2].token_ids) <= 2


def test_a_seed_repeats_and_no_seed_varies(engine: TransformersEngine) -> None:
    def draw(seed: int | None) -> list[tuple[int, ...]]:
        return [one.token_ids for one in write(engine, PROMPTS, Decoding(temperature=3.0, top_p=1.0, seed=seed))]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_samples_of_one_prompt_are_adjacent(engine: TransformersEngine) -> None:
    many = write(engine, PROMPTS[:2], Decoding(temperature=3.0, top_p=1.0), samples=4)
    assert len(many) == 8
    assert len({one.token_ids for one in many[:4]}) > 1
    for index, one in enumerate(many):
        assert one.policy_logprob == pytest.approx(logprob_of(engine, PROMPTS[index // 4], one.token_ids), abs=1e-3)


def test_an_item_that_repeats_an_earlier_one_is_drawn_anew(tmp_path: Path) -> None:
    """Without redraws the grammar has to make another item of it, by force. A policy of four letters often repeats an item."""
    letters = make_letter_policy(tmp_path)
    task = Task(name="suggest", n=3, template="{query}", max_item_tokens=4)
    prompts = [letters.encode_prompt(task, query) for query in ("a", "b c", "dd") for _ in range(20)]
    plain, redrawn = (
        letters.generate(prompts, [Decoding(temperature=0.5, seed=seed, redraws=redraws) for seed in range(60)])
        for redraws in (0, 20)
    )
    assert all(one.list.well_formed and not find_duplicates(one.list.items, 1.0) for one in (*plain, *redrawn))
    assert sum(one.token_ids != other.token_ids for one, other in zip(plain, redrawn, strict=True)) >= 5
    assert sum(one.forced for one in redrawn) < sum(one.forced for one in plain)
    for prompt, one in zip(prompts, redrawn, strict=True):
        assert one.policy_logprob == pytest.approx(sum_logprobs(letters, prompt.token_ids, one.token_ids), abs=1e-3)


def test_a_policy_that_knows_one_item_alone_is_stopped_after_its_redraws(engine: TransformersEngine) -> None:
    (stuck,) = write(engine, PROMPTS[:1], Decoding(temperature=1e-4, redraws=3))
    (greedy,) = write(engine, PROMPTS[:1], Decoding(greedy=True, redraws=3))
    assert stuck.token_ids == greedy.token_ids
    assert stuck.list.well_formed


def test_every_list_is_well_formed_unless_it_was_cut(engine: TransformersEngine) -> None:
    drawn = write(engine, PROMPTS * 20, Decoding(temperature=1.5, top_p=1.0))
    assert all(one.list.well_formed and one.forced for one in drawn)
    (cut,) = write(engine, PROMPTS[:1], Decoding(max_new_tokens=3))
    assert (len(cut.token_ids), cut.list.well_formed) == (3, False)


def test_what_the_policy_would_have_drawn_itself_is_not_forced(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that writes two items and ends by itself needs no grammar for a list of two."""
    script = [*engine.tokenizer("red")["input_ids"], engine.form.sep, *engine.tokenizer("wide")["input_ids"], engine.form.eos]
    task = Task(name="suggest", n=2, template="{query} =>", max_item_tokens=8)
    prompts = encode_texts(["x"], task, engine.tokenizer)
    start = len(prompts[0].token_ids)

    def say(position_ids: torch.Tensor) -> torch.Tensor:
        at = (position_ids - start + 1).clamp(0, len(script) - 1)
        return 30.0 * torch.nn.functional.one_hot(torch.tensor(script)[at], len(engine.tokenizer)).float()

    forward = engine.model.forward

    def answer(**inputs: Any) -> SimpleNamespace:
        forward(**inputs)
        return SimpleNamespace(logits=say(inputs["position_ids"]))

    monkeypatch.setattr(engine.model, "forward", answer)
    (one,) = engine.generate(prompts, Decoding(temperature=1.0, top_p=0.9))
    assert (list(one.token_ids), one.forced, one.list.well_formed) == (script, 0, True)
    (short,) = engine.generate([replace(prompts[0], task=task.model_copy(update={"n": 3}))], Decoding(temperature=1.0, top_p=0.9))
    assert short.forced >= 1  # it would have ended the list after two
    assert short.list.well_formed


def test_the_longest_prompt_and_its_list_fit_into_the_policy(engine: TransformersEngine) -> None:
    prompt = engine.encode_prompt(SUGGEST.model_copy(update={"max_query_chars": 5000}), "trail " * 800)
    assert len(prompt.token_ids) == 512 - SUGGEST.max_new_tokens
    assert engine.generate([prompt], GREEDY)[0].token_ids


def test_no_prompts_no_lists(engine: TransformersEngine) -> None:
    assert write(engine, [], GREEDY) == []
    with pytest.raises(ValueError, match="2 decodings for 3 prompts"):
        write(engine, PROMPTS, [GREEDY, GREEDY])


def test_search_continuations_equal_plain_recomputation(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three items deep: each continuation's log-probability is that of a forward pass over the whole text so far."""
    boost_ends(engine, monkeypatch, 5.0)
    state = engine.begin(encode_texts(PROMPTS, SUGGEST, engine.tokenizer))
    before: list[list[int]] = [[] for _ in PROMPTS]
    for depth in range(3):
        expansion = engine.expand(state, 6, Decoding(temperature=1.3, top_p=1.0, seed=depth))
        assert [one.parent for one in expansion.continuations] == [row for row in range(len(state.rows)) for _ in range(6)]
        assert len({one.token_ids for one in expansion.continuations}) > 4
        for one in expansion.continuations:
            before_ids = engine.tokenizer(PROMPTS[one.prompt])["input_ids"] + before[one.parent]
            with torch.inference_mode():
                scores = engine.model(torch.tensor([[*before_ids, *one.token_ids]])).logits[0].log_softmax(-1)
            expected = sum(float(scores[len(before_ids) - 1 + step, token]) for step, token in enumerate(one.token_ids))
            assert one.logprob == pytest.approx(expected, abs=1e-3)
        assert {one.token_ids[-1] for one in expansion.continuations} == {engine.form.eos if depth == 2 else engine.form.sep}
        chosen = [*range(len(expansion.continuations))][::-1][:7] + [0]
        state = engine.select(expansion, chosen)
        picked = [expansion.continuations[index] for index in chosen]
        before = [before[one.parent] + [*one.token_ids] for one in picked]
        assert state.prompts == tuple(one.prompt for one in picked)
        assert [items[-1] for items in state.items] == [one.item for one in picked]


def test_greedy_search_writes_the_greedy_list(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    boost_ends(engine, monkeypatch, 5.0)
    state = engine.begin(encode_texts(PROMPTS, SUGGEST, engine.tokenizer))
    written: list[tuple[int, ...]] = [()] * len(PROMPTS)
    for _ in range(SUGGEST.n):
        expansion = engine.expand(state, 1, GREEDY)
        written = [ids + one.token_ids for ids, one in zip(written, expansion.continuations, strict=True)]
        state = engine.select(expansion, range(len(PROMPTS)))
    assert written == [one.token_ids for one in write(engine, PROMPTS, GREEDY)]
    with pytest.raises(ValueError, match="all 3 items of task suggest"):
        engine.expand(state, 1, GREEDY)


def test_no_continuation_repeats_an_item_or_the_query(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    boost_ends(engine, monkeypatch, 5.0)
    state = engine.begin(encode_texts(PROMPTS, SUGGEST, engine.tokenizer))
    for depth in range(SUGGEST.n):
        expansion = engine.expand(state, 20, Decoding(temperature=0.5, top_p=1.0, seed=depth, redraws=2))
        for one in expansion.continuations:
            earlier = {normalise(text) for text in (PROMPTS[one.prompt], *state.items[one.parent])}
            assert normalise(one.item) not in earlier
        state = engine.select(expansion, range(0, len(expansion.continuations), 20))


def test_a_search_state_can_be_expanded_twice(engine: TransformersEngine) -> None:
    state = engine.begin(encode_texts(PROMPTS, SUGGEST, engine.tokenizer))
    once, again = (engine.expand(state, 3, Decoding(seed=7)) for _ in range(2))
    assert once.continuations == again.continuations


def test_the_first_item_is_after_the_auxiliary_texts(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    boost_ends(engine, monkeypatch, 3.0)
    expansion = engine.expand(
        engine.begin(encode_texts(PROMPTS, REFINE, engine.tokenizer)), 20, Decoding(temperature=1.5, top_p=1.0, seed=0)
    )
    assert all(len(one.auxiliary) == 1 and one.auxiliary[0] for one in expansion.continuations)
    state = engine.select(expansion, [3, 1])
    assert state.auxiliary == tuple(expansion.continuations[index].auxiliary for index in (3, 1))
    later = engine.expand(state, 40, Decoding(temperature=1.5, top_p=1.0, seed=1)).continuations
    assert all(one.auxiliary == () for one in later)


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_folder_without_weights_or_vocabulary_is_refused(tmp_path: Path, missing: str) -> None:
    folder = make_tiny_policy(tmp_path / "policy")
    (folder / missing).unlink()
    with pytest.raises((OSError, ValueError), match=r"\S"):
        TransformersEngine.load(folder, "cpu")
    with pytest.raises(FileNotFoundError, match="no policy folder"):
        TransformersEngine.load(tmp_path / "nowhere", "cpu")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_policy(tmp_path / "policy")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TransformersEngine.load(folder, "cpu")
