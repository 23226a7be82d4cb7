"""The form of a list in tokens: which token ends each of its texts (auxiliary texts first, then items), and which are no text.

The form belongs to the policy, and travels with its tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from serving.policy.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEP = "<SEP>"
AUX = "<AUX>"


@dataclass(frozen=True, slots=True)
class ListForm:
    """The ids of the tokens that structure a list; `special` are all tokens that are no text."""

    name: Literal["tokens"]
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


def find_form(tokenizer: PreTrainedTokenizerBase) -> ListForm:
    """Return the form of a policy's lists. Raises ValueError when its tokenizer has no EOS, or no special <SEP> or <AUX>."""
    special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    if missing := [text for text in (SEP, AUX) if text not in special]:
        raise ValueError(
            f"the tokenizer has no special token {' and '.join(missing)}: add them with serving.policy.list_form.add_list_tokens"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token: lists could not end")
    return ListForm("tokens", special[SEP], special[AUX], int(tokenizer.eos_token_id), frozenset(special.values()))
