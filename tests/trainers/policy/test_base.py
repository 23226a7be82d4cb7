"""The small base that is made from scratch, and loading one."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.policy.engines.transformers_engine import TransformersEngine
from serving.policy.list_form import AUX, SEP, find_form
from serving.policy.lists import encode_list, parse
from tests.support.toy_policy import SMALL, TASK, TASKS, draw_annotations
from trainers.policy.base import learn_vocabulary, load_policy, make_base
from trainers.policy.base_folder import BaseFault
from trainers.policy.sft import annotation_texts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(annotation_texts(draw_annotations(50), TASKS), tmp_path_factory.mktemp("made") / "base", SMALL)


def test_the_base_is_a_folder_that_serving_loads(base: Path) -> None:
    engine = TransformersEngine.load(base, "cpu")
    assert engine.model.config.hidden_size == SMALL.hidden
    assert engine.model.config.max_position_embeddings == SMALL.context
    assert [path.name for path in base.glob("*.safetensors")] == ["model.safetensors"]
    assert not list(base.glob("*.bin"))


def test_the_same_seed_gives_the_same_weights(base: Path, tmp_path: Path) -> None:
    texts = annotation_texts(draw_annotations(50), TASKS)
    again = make_base(texts, tmp_path / "again", SMALL)
    other = make_base(texts, tmp_path / "other", SMALL.model_copy(update={"seed": 1}))
    weights = (base / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == weights
    assert (other / "model.safetensors").read_bytes() != weights


def test_a_list_token_is_one_token_and_texts_are_the_same_after_a_round_trip(base: Path) -> None:
    _, tokenizer = load_policy(base, "cpu")
    form = find_form(tokenizer)
    assert len({form.sep, form.aux, form.eos, tokenizer.pad_token_id}) == 4
    for text in ("cat food", "naïve 日本語 🦊", "a  b"):
        assert tokenizer.decode(tokenizer(text).input_ids).split() == text.split()


def test_a_word_is_the_same_token_first_in_an_item_and_inside_a_prompt(base: Path) -> None:
    _, tokenizer = load_policy(base, "cpu")
    assert tokenizer("the cat").input_ids[-1:] == tokenizer("cat").input_ids


def test_a_list_is_parsed_back_from_its_tokens(base: Path) -> None:
    _, tokenizer = load_policy(base, "cpu")
    found = parse(encode_list(("cat food", "cat price"), (), tokenizer), tokenizer, TASK)
    assert found.items == ("cat food", "cat price")
    assert found.well_formed


def test_what_a_user_types_is_never_a_list_token() -> None:
    tokenizer = learn_vocabulary(["cat food"], 300)
    ids = encode_list((f"cat {SEP} food", f"{AUX}dog"), (), tokenizer)
    assert ids.count(find_form(tokenizer).sep) == 1
    assert find_form(tokenizer).aux not in ids


def test_a_foreign_vocabulary_gets_the_list_tokens_and_the_model_rows_for_them(base: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel({"cat": 0, "dog": 1, "</s>": 2, "[UNK]": 3}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="[UNK]").save_pretrained(tmp_path)
    small = AutoModelForCausalLM.from_pretrained(base)
    small.resize_token_embeddings(4)
    small.save_pretrained(tmp_path)

    model, tokenizer = load_policy(tmp_path, "cpu", list_form="tokens")
    form = find_form(tokenizer)
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == 6
    assert tokenizer.pad_token_id == form.eos == 2


def test_a_missing_base_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BaseFault, match=r"policy.base = .*nowhere.*'scratch'"):
        load_policy(tmp_path / "nowhere", "cpu")
