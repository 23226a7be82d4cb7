"""The form of a list in tokens is the tokenizer's."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from serving.policy.list_form import ListForm, add_list_tokens, find_form
from serving.policy.tasks import Task


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
