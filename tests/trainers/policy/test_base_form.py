"""A base gets the form that fits it, and list tokens that it has never seen are learned as a whole, in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serving.policy.list_form import AUX, SEP, find_form, store_form
from tests.support.bases import make_base_of_kind
from tests.support.toy_policy import SMALL, TASKS, draw_annotations
from trainers.policy.base import check_base, load_policy, make_base
from trainers.policy.base_folder import BaseFault
from trainers.policy.base_form import ListFormSetting
from trainers.policy.sft import SftSettings, annotation_texts, train_sft

ANNOTATIONS = draw_annotations(24)
TEXTS = annotation_texts(ANNOTATIONS, TASKS)
PRETRAINED = pytest.mark.parametrize("kind", ["qwen3", "untied", "gpt2"])


def rows_of(model: Any) -> list[torch.Tensor]:
    """The weights of the input embedding and of the output head."""
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


@pytest.mark.parametrize(
    ("kind", "wanted", "form"),
    [
        ("scratch", "auto", "tokens"),
        ("scratch", "lines", "lines"),
        ("qwen3", "auto", "lines"),
        ("gpt2", "lines", "lines"),
        ("untied", "tokens", "tokens"),
    ],
)
def test_a_pretrained_base_writes_lines_and_one_from_scratch_tokens_unless_told(
    tmp_path: Path, kind: str, wanted: ListFormSetting, form: str
) -> None:
    base = make_base_of_kind(kind, tmp_path, TEXTS)
    model, tokenizer = load_policy(base, "cpu", list_form=wanted)
    assert find_form(tokenizer).name == form
    assert (SEP in tokenizer.get_vocab()) == (form == "tokens" or kind == "scratch")
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings


def test_a_base_made_from_scratch_has_the_form_of_the_settings(tmp_path: Path) -> None:
    folder = make_base(TEXTS, tmp_path, SMALL.model_copy(update={"list_form": "lines"}))
    assert find_form(AutoTokenizer.from_pretrained(folder)).name == "lines"


def test_a_policy_keeps_the_form_that_it_was_trained_with(tmp_path: Path) -> None:
    base = make_base_of_kind("qwen3", tmp_path, TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(base)
    store_form(tokenizer, "lines")
    tokenizer.add_tokens([SEP, AUX], special_tokens=True)
    tokenizer.save_pretrained(base)
    assert find_form(load_policy(base, "cpu")[1]).name == "lines"


def test_a_base_without_a_newline_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    base = make_base_of_kind("untied", tmp_path, TEXTS)
    words = Tokenizer(models.WordLevel({"cat": 0, "</s>": 1, "[UNK]": 2}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="[UNK]").save_pretrained(base)
    with pytest.raises(BaseFault, match=r"policy\.base = .* newline.*policy\.list_form = 'tokens'"):
        check_base(base)
    assert check_base(base, "tokens")[1] == [3, 4]


@PRETRAINED
def test_new_list_tokens_start_from_a_newline_and_a_semicolon(tmp_path: Path, kind: str) -> None:
    base = make_base_of_kind(kind, tmp_path, TEXTS)
    before, bare = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    model, tokenizer = load_policy(base, "cpu", list_form="tokens")
    like = [bare("\n")["input_ids"][0], bare(";")["input_ids"][0]]
    new = tokenizer.convert_tokens_to_ids([SEP, AUX])
    for old, rows in zip(rows_of(before), rows_of(model), strict=True):
        assert torch.equal(rows[new], old[like].mean(0).expand(2, -1))
        assert torch.equal(rows[: new[0]], old[: new[0]])


@PRETRAINED
@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "lora"])
def test_new_list_tokens_are_trained_in_and_out(tmp_path: Path, kind: str, rank: int) -> None:
    base = make_base_of_kind(kind, tmp_path / "base", TEXTS)
    settings = SftSettings(epochs=1, batch=12, learning_rate=1e-2, lora_rank=rank, weight_decay=0)
    train_sft(base, ANNOTATIONS, TASKS, tmp_path / "out", settings, "cpu", "tokens")
    start, tokenizer = load_policy(base, "cpu", list_form="tokens")
    trained, _ = load_policy(tmp_path / "out", "cpu")
    sep, aux = tokenizer.convert_tokens_to_ids([SEP, AUX])
    for before, after in zip(rows_of(start), rows_of(trained), strict=True):
        moved = (after - before).abs().sum(1).nonzero()[:, 0].tolist()
        assert sep in moved
        if rank:  # every other token keeps the meaning that it had
            assert set(moved) <= {sep, aux}


@PRETRAINED
def test_lines_need_no_row_of_their_own(tmp_path: Path, kind: str) -> None:
    base = make_base_of_kind(kind, tmp_path / "base", TEXTS)
    settings = SftSettings(epochs=1, batch=12, learning_rate=1e-2, lora_rank=2)
    train_sft(base, ANNOTATIONS, TASKS, tmp_path / "out", settings, "cpu")
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, tmp_path / "out"))
    for old, new in zip(rows_of(before), rows_of(after), strict=True):
        assert torch.equal(old, new)
    assert any(not torch.equal(old, new) for old, new in zip(before.parameters(), after.parameters(), strict=True))
