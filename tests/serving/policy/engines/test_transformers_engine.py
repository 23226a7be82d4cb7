"""The engine that runs a policy: its loop equals transformers' own, and what it reports equals a plain forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from serving.policy.engines import Decoding, Generation
from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.tasks import Task
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
    """Sum of log p(token | all before) by one forward pass without cache or padding."""
    before = engine.tokenizer(prompt)["input_ids"]
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
    boost_ends(engine, monkeypatch, times)
    ours = write(engine, PROMPTS, Decoding(greedy=True, max_new_tokens=20), Task(name="suggest", n=30, template="{query}"))
    for prompt, generation in zip(PROMPTS, ours, strict=True):
        inputs = engine.tokenizer(prompt, return_tensors="pt")
        theirs = engine.model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, max_new_tokens=20
        )
        assert list(generation.token_ids) == theirs[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    "decoding", [GREEDY, Decoding(temperature=0.8, top_p=0.9, seed=3), Decoding(temperature=2.0, top_p=1.0, seed=4)]
)
def test_logprob_equals_a_forward_pass(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, decoding: Decoding) -> None:
    boost_ends(engine, monkeypatch, 3.0)
    for prompt, generation in zip(PROMPTS, write(engine, PROMPTS, decoding), strict=True):
        assert generation.logprob == pytest.approx(logprob_of(engine, prompt, generation.token_ids), abs=1e-3)
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
        assert generation.logprob == pytest.approx(logprob_of(engine, prompt, generation.token_ids), abs=1e-3)
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
        assert one.logprob == pytest.approx(logprob_of(engine, PROMPTS[index // 4], one.token_ids), abs=1e-3)


def test_an_item_that_repeats_an_earlier_one_is_drawn_anew(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    boost_ends(engine, monkeypatch, 4.0)
    task = Task(name="suggest", n=4, template="{query} =>", max_item_tokens=8)
    decodings = [Decoding(temperature=1.5, top_p=1.0, seed=seed) for seed in range(60)]
    plain = write(engine, PROMPTS * 20, decodings, task)
    distinct = write(engine, PROMPTS * 20, [replace(one, redraws=20) for one in decodings], task)
    before, after = (sum(repeats(engine, one) for one in lists) for lists in (plain, distinct))
    assert before >= 5
    assert after <= before / 2  # where the policy sees one way to go on, drawing anew does not help
    for index, one in enumerate(distinct):
        assert one.logprob == pytest.approx(logprob_of(engine, PROMPTS[index % 3], one.token_ids), abs=1e-3)


def repeats(engine: TransformersEngine, generation: Generation) -> bool:
    """Whether an item, ended by <SEP> or EOS, is there twice, token by token."""
    items: list[tuple[int, ...]] = []
    item: list[int] = []
    for token in generation.token_ids:
        if token in (engine.form.sep, engine.form.eos):
            items.append(tuple(item))
        item = [] if token in (engine.form.sep, engine.form.aux) else [*item, token]
    return len(set(items)) < len(items)


def test_redraws_change_nothing_where_no_item_repeats_and_end_at_their_number(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    boost_ends(engine, monkeypatch, 6.0)
    for prompt in PROMPTS * 5:
        decoding = Decoding(temperature=2.0, top_p=1.0, seed=len(prompt))
        (plain,), (distinct,) = (write(engine, [prompt], one) for one in (decoding, replace(decoding, redraws=9)))
        if not repeats(engine, plain):
            assert plain.token_ids == distinct.token_ids
    (stuck,) = write(engine, PROMPTS[:1], Decoding(temperature=1e-4, redraws=3))
    (greedy,) = write(engine, PROMPTS[:1], Decoding(greedy=True, redraws=3))
    assert stuck.token_ids == greedy.token_ids


def test_a_row_ends_at_eos_at_its_limit_or_after_its_last_separator(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    boost_ends(engine, monkeypatch, 4.0)
    drawn = write(engine, PROMPTS * 20, Decoding(temperature=1.5, top_p=1.0))
    reasons = {end_of(engine, one) for one in drawn}
    assert reasons == {"eos", "limit", "separators"}


def end_of(engine: TransformersEngine, generation: Generation) -> str:
    ids = generation.token_ids
    assert engine.form.eos not in ids[:-1]
    assert ids[:-1].count(engine.form.sep) < SUGGEST.n
    if ids[-1] == engine.form.eos:
        return "eos"
    if ids.count(engine.form.sep) == SUGGEST.n:
        assert not generation.list.well_formed
        return "separators"
    assert len(ids) == SUGGEST.max_new_tokens
    return "limit"


def test_top_p_keeps_to_the_nucleus(engine: TransformersEngine) -> None:
    prompt = "red shoes =>"
    with torch.inference_mode():
        logits = engine.model(torch.tensor([engine.tokenizer(prompt)["input_ids"]])).logits[0, -1]
    probabilities, order = (logits / 0.7).softmax(-1).sort(descending=True)
    nucleus = order[: int((probabilities.cumsum(-1) < 0.5).sum()) + 1].tolist()
    first = {one.token_ids[0] for one in write(engine, [prompt], Decoding(temperature=0.7, top_p=0.5), samples=300)}
    assert first <= set(nucleus)
    assert probabilities[0] > 0.05
    assert order[0].item() in first


def test_sampled_frequencies_follow_the_distribution(engine: TransformersEngine) -> None:
    prompt, draws = "red shoes =>", 3000
    with torch.inference_mode():
        expected = engine.model(torch.tensor([engine.tokenizer(prompt)["input_ids"]])).logits[0, -1].softmax(-1)
    seen = write(engine, [prompt], Decoding(temperature=1.0, top_p=1.0, seed=None, max_new_tokens=1), samples=draws)
    counts = torch.bincount(torch.tensor([one.token_ids[0] for one in seen]), minlength=len(expected))
    likely = expected > 0.01
    deviation = (counts / draws - expected).abs()[likely] / (expected * (1 - expected) / draws).sqrt()[likely]
    assert float(deviation.max()) < 5.0


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
        ended = [index for index, one in enumerate(expansion.continuations) if one.end != "cut"]
        chosen = list(reversed(ended))[:7] + ended[:1]
        state = engine.select(expansion, chosen)
        picked = [expansion.continuations[index] for index in chosen]
        before = [before[one.parent] + [*one.token_ids[:-1], engine.form.sep] for one in picked]
        assert state.prompts == tuple(one.prompt for one in picked)
        assert [items[-1] for items in state.items] == [one.item for one in picked]


def test_greedy_search_equals_naive_continuation(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    boost_ends(engine, monkeypatch, 5.0)
    state = engine.begin(encode_texts(PROMPTS, SUGGEST, engine.tokenizer))
    texts = [list(engine.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    for _ in range(2):
        expansion = engine.expand(state, 1, GREEDY)
        for text, one in zip(texts, expansion.continuations, strict=True):
            assert list(one.token_ids) == continue_naively(engine, text)
        keep = [index for index, one in enumerate(expansion.continuations) if one.end != "cut"]
        if not keep:
            return
        texts = [texts[index] + [*expansion.continuations[index].token_ids[:-1], engine.form.sep] for index in keep]
        state = engine.select(expansion, keep)


def continue_naively(engine: TransformersEngine, ids: Sequence[int]) -> list[int]:
    drawn: list[int] = []
    with torch.inference_mode():
        while len(drawn) < SUGGEST.max_item_tokens and (not drawn or drawn[-1] not in (engine.form.sep, engine.form.eos)):
            drawn.append(int(engine.model(torch.tensor([[*ids, *drawn]])).logits[0, -1].argmax()))
    return drawn


def test_a_search_state_can_be_expanded_twice(engine: TransformersEngine) -> None:
    state = engine.begin(encode_texts(PROMPTS, SUGGEST, engine.tokenizer))
    once, again = (engine.expand(state, 3, Decoding(seed=7)) for _ in range(2))
    assert once.continuations == again.continuations


def test_the_first_item_is_after_the_auxiliary_texts(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    boost_ends(engine, monkeypatch, 3.0)
    expansion = engine.expand(
        engine.begin(encode_texts(PROMPTS, REFINE, engine.tokenizer)), 400, Decoding(temperature=1.5, top_p=1.0, seed=0)
    )
    complete = [index for index, one in enumerate(expansion.continuations) if one.complete]
    assert complete
    assert all(len(expansion.continuations[index].auxiliary) == 1 for index in complete)
    state = engine.select(expansion, complete[:2])
    assert state.auxiliary == tuple(expansion.continuations[index].auxiliary for index in complete[:2])
    later = engine.expand(state, 40, Decoding(temperature=1.5, top_p=1.0, seed=1)).continuations
    assert all(one.auxiliary == () for one in later if one.complete)


def test_what_was_cut_off_cannot_be_selected(engine: TransformersEngine) -> None:
    expansion = engine.expand(engine.begin(encode_texts(PROMPTS, SUGGEST, engine.tokenizer)), 4, Decoding(seed=0, top_p=0.3))
    cut = [index for index, one in enumerate(expansion.continuations) if one.end == "cut"]
    assert cut
    with pytest.raises(ValueError, match="cut off"):
        engine.select(expansion, cut[:1])


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


def test_an_adapter_answers_as_its_merged_weights(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = make_tiny_policy(tmp_path / "base")
    plain = TransformersEngine.load(base, "cpu")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(TransformersEngine.load(base, "cpu").model, config)
    adapted.save_pretrained(tmp_path / "adapter")
    plain.tokenizer.save_pretrained(tmp_path / "adapter")
    settings = tmp_path / "adapter" / "adapter_config.json"
    assert str(base) in settings.read_text()
    loaded = TransformersEngine.load(tmp_path / "adapter", "cpu")
    ours, merged = (
        write(one, PROMPTS, GREEDY) for one in (loaded, TransformersEngine(adapted.merge_and_unload(), plain.tokenizer))
    )
    assert [one.token_ids for one in ours] == [one.token_ids for one in merged]
    assert [one.token_ids for one in ours] != [one.token_ids for one in write(plain, PROMPTS, GREEDY)]
