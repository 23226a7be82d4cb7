"""The form of a list in tokens: which token ends each of its texts (auxiliary texts first, then items), and which are no text.

`tokens`: texts are ended by <SEP> and <AUX>, tokens of their own. `lines`: one text a line, as every pretrained model has read
them. The form belongs to the policy, and travels with its tokenizer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from serving.policy.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FormName = Literal["tokens", "lines"]
SEP = "<SEP>"
AUX = "<AUX>"
THINK, END_THINK = "<think>", "</think>"
_KEY = "list_form"
"""The entry of tokenizer_config.json that names the form."""
_MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")


@dataclass(frozen=True, slots=True)
class ListForm:
    """The ids of the tokens that structure a list; in `lines` `sep` and `aux` are both the newline. `special` are all tokens that
    are no text: special ones, and markers such as <think>."""

    name: FormName
    sep: int
    aux: int
    eos: int
    special: frozenset[int]

    def find_ends(self, task: Task) -> tuple[int, ...]:
        """Return the token that ends each text of a list: the auxiliary texts, then the items, the last of which ends it."""
        return (self.aux,) * len(task.auxiliary) + (self.sep,) * (task.n - 1) + (self.eos,)


def add_list_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """Add <SEP> and <AUX> to a tokenizer; return how many were new (the policy's embeddings must then be resized)."""
    from tokenizers import AddedToken

    tokens = [AddedToken(text, special=True, normalized=False) for text in (SEP, AUX)]
    return int(tokenizer.add_tokens(tokens, special_tokens=True))


def store_form(tokenizer: PreTrainedTokenizerBase, name: FormName) -> None:
    """Note the form in a tokenizer: `save_pretrained` writes it to tokenizer_config.json and `from_pretrained` reads it back."""
    tokenizer.init_kwargs[_KEY] = name


def name_form(tokenizer: PreTrainedTokenizerBase) -> FormName | None:
    """Return the form that was noted, else `tokens` where the tokenizer has <SEP> and <AUX>. Raises ValueError for another."""
    name: FormName | None = tokenizer.init_kwargs.get(_KEY)
    if name in ("tokens", "lines"):
        return name
    if name is not None:
        raise ValueError(f'"{_KEY}" = {name!r} in tokenizer_config.json is neither "tokens" nor "lines"')
    return "tokens" if {SEP, AUX} <= _find_special(tokenizer).keys() else None


def find_form(tokenizer: PreTrainedTokenizerBase) -> ListForm:
    """Return the form of a policy's lists.

    Raises ValueError when the tokenizer has no EOS, or lacks what the form needs: special tokens <SEP> and <AUX>, or one token
    for a newline."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token: lists could not end")
    name = name_form(tokenizer) or "tokens"
    sep, aux = _find_list_tokens(tokenizer) if name == "tokens" else (find_newline(tokenizer),) * 2
    return ListForm(name, sep, aux, int(tokenizer.eos_token_id), find_markers(tokenizer))


def find_markers(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of the tokens that are no text: special ones, and added ones that look like a tag (<think>, [INST])."""
    added = tokenizer.added_tokens_decoder
    return frozenset(index for index, token in added.items() if token.special or _MARKER.fullmatch(token.content.strip()))


def find_thinking(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int] | None:
    """Return the tokens that begin and end what a reasoning model writes for itself, where the tokenizer has them."""
    by_text = {token.content: index for index, token in tokenizer.added_tokens_decoder.items()}
    start, end = by_text.get(THINK), by_text.get(END_THINK)
    return None if start is None or end is None else (start, end)


def find_newline(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that a newline after a word becomes. Raises ValueError where it is no token of its own."""
    last = int(tokenizer("a\n", add_special_tokens=False)["input_ids"][-1])
    if tokenizer.decode([last]) != "\n":
        raise ValueError(
            "the tokenizer has no single token for a newline, which lists in lines need: set policy.list_form = 'tokens'"
        )
    return last


def _find_list_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    special = _find_special(tokenizer)
    if missing := [text for text in (SEP, AUX) if text not in special]:
        raise ValueError(
            f"the tokenizer has no special token {' and '.join(missing)}: add them with "
            "serving.policy.list_form.add_list_tokens, or note another form with store_form"
        )
    return special[SEP], special[AUX]


def _find_special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    return {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
