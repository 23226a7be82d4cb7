"""Fits a base to the form of its lists: which form, and the weights of list tokens that the base has never seen.

A pretrained model has read newlines all its life, so its lists are lines; <SEP> and <AUX> are for bases made here, or on demand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from serving.policy.list_form import AUX, SEP, FormName, add_list_tokens, find_form, name_form, store_form
from trainers.policy.base_folder import BaseFault

ListFormSetting = Literal["auto", "lines", "tokens"]
_LIKE = ("\n", ";")
"""Texts that stand between the items of a list in what pretrained models have read."""


def choose_form(tokenizer: Any, wanted: ListFormSetting) -> FormName:
    """Return the wanted form; for `auto` the one that the tokenizer has already, else `lines`."""
    return (name_form(tokenizer) or "lines") if wanted == "auto" else wanted


def fit_form(base: str | Path, tokenizer: Any, wanted: ListFormSetting) -> list[int]:
    """Note the form in the tokenizer and return the ids of the list tokens that it needed and did not have.

    Raises BaseFault for a form that the tokenizer cannot write."""
    form = choose_form(tokenizer, wanted)
    known = set(tokenizer.get_vocab())
    store_form(tokenizer, form)
    if form == "tokens":
        add_list_tokens(tokenizer)
    try:
        find_form(tokenizer)
    except ValueError as error:
        raise BaseFault(base, str(error)) from error
    return [tokenizer.convert_tokens_to_ids(text) for text in (SEP, AUX) if form == "tokens" and text not in known]


def start_rows(model: Any, tokenizer: Any, new: Sequence[int]) -> None:
    """Give new tokens the mean weights of a newline and of ";", in the input embedding and in an output head of its own.

    Random ones would be further from every text that the model knows than the first steps of a training can reach."""
    import torch

    like = find_like(tokenizer)
    layers = {
        id(layer.weight): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None
    }
    with torch.no_grad():
        for layer in layers.values():
            layer.weight[list(new)] = layer.weight[like or slice(None, int(min(new)))].mean(0)


def find_like(tokenizer: Any) -> list[int]:
    """Return the tokens of a newline and of ";", without those that the tokenizer does not have."""
    last = {text: tokenizer(f"a{text}", add_special_tokens=False)["input_ids"][-1] for text in _LIKE}
    return [int(token) for text, token in last.items() if tokenizer.decode([token]).lstrip(" ") == text]


def trained_rows(model: Any, tokenizer: Any) -> dict[str, list[int]] | None:
    """Return the rows that LoRA trains as a whole, by the name of their layer: those of <SEP> and <AUX>, in the input embedding
    and in an output head of its own; none where lists are lines."""
    if find_form(tokenizer).name == "lines":
        return None
    rows = tokenizer.convert_tokens_to_ids([SEP, AUX])
    layers = [model.get_input_embeddings()]
    if (head := model.get_output_embeddings()) is not None and head.weight is not layers[0].weight:
        layers.append(head)
    names = {id(layer): name for name, layer in model.named_modules()}
    return {names[id(layer)].rsplit(".", 1)[-1]: rows for layer in layers}
