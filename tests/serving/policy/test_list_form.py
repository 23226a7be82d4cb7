"""The form of a list in tokens is the tokenizer's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from serving.policy.list_form import ListForm, add_list_tokens, find_form, find_markers, find_newline, store_form
from serving.policy.tasks import Task
from tests.support.bases import IM_END, make_chatml_tokenizer
from trainers.policy.base import learn_vocabulary


def test_tokens_are_added_once() -> None:

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), eos_token="a")
    with pytest.raises(ValueError, match="<SEP> and <AUX>"):
        find_form(bare)
    assert add_list_tokens(bare) == 2
    assert add_list_tokens(bare) == 0
    assert find_form(bare).eos == 0
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])))
    add_list_tokens(endless)
    with pytest.raises(ValueError, match="no EOS"):
        find_form(endless)


def test_each_text_has_its_ending_token() -> None:
    form = ListForm("tokens", 1, 2, 3, frozenset({1, 2, 3}))
    assert form.find_ends(Task(name="hint", n=1)) == (3,)
    assert form.find_ends(Task(name="refine", n=3, auxiliary=("prefix", "suffix"))) == (2, 2, 1, 1, 3)


def test_in_lines_a_newline_ends_every_text_but_the_last() -> None:
    tokenizer = make_chatml_tokenizer()
    store_form(tokenizer, "lines")
    form = find_form(tokenizer)
    newline = tokenizer("\n")["input_ids"]
    assert (form.name, form.eos) == ("lines", tokenizer.convert_tokens_to_ids(IM_END))
    assert [form.sep, form.aux] == newline * 2
    assert form.find_ends(Task(name="refine", n=2, auxiliary=("prefix",))) == (form.sep, form.sep, form.eos)


@pytest.mark.parametrize("name", ["lines", "tokens"])
def test_the_form_is_saved_with_the_tokenizer(tmp_path: Path, name: Any) -> None:
    tokenizer = make_chatml_tokenizer()
    add_list_tokens(tokenizer)
    store_form(tokenizer, name)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert find_form(again) == find_form(tokenizer)
    assert find_form(again).name == name


def test_a_vocabulary_that_puts_a_space_before_each_text_has_a_newline_too() -> None:
    tokenizer = learn_vocabulary(["a b"], 300)
    assert tokenizer.decode([find_newline(tokenizer)]) == "\n"


def test_a_vocabulary_without_a_newline_cannot_write_lines() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="a")
    store_form(tokenizer, "lines")
    with pytest.raises(ValueError, match=r"no single token for a newline.*policy\.list_form = 'tokens'"):
        find_form(tokenizer)


def test_an_unknown_form_is_named() -> None:
    tokenizer = make_chatml_tokenizer()
    tokenizer.init_kwargs["list_form"] = "verse"
    with pytest.raises(ValueError, match=r"'verse' in tokenizer_config\.json"):
        find_form(tokenizer)


def test_markers_are_no_text_though_they_are_not_special() -> None:
    tokenizer = make_chatml_tokenizer()
    tokenizer.add_tokens(["  ", "hello"])
    markers = {tokenizer.convert_ids_to_tokens(index) for index in find_markers(tokenizer)}
    assert markers == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"}
