"""The forward passes of an engine: prefill of the prompts, then one token a row and step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from serving.policy.engines.kv_cache import gather_columns, join_rows, make_cache, select_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

_WORTH_SHARING = 16


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a batch and all that the next pass needs. `mask` [rows, columns] is true where a column of `cache` is a token of
    the row; `lengths` [rows, 1] counts them; `logits` [rows, vocabulary] (float) are those of each row's next token."""

    cache: Cache
    mask: torch.Tensor
    lengths: torch.Tensor
    logits: torch.Tensor

    def __len__(self) -> int:
        return self.mask.shape[0]


def prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad: int) -> Rows:
    """Run the prompts (token ids, none empty), padded on the left; a long common start (instructions) is computed once."""
    start = _shared_start(prompts)
    cache = make_cache(model.config.num_hidden_layers)
    if start:
        first = torch.tensor([list(prompts[0][:start])], device=model.device)
        _forward(model, first, torch.ones_like(first, dtype=torch.bool), torch.arange(start, device=model.device)[None], cache)
        cache = select_rows(cache, torch.zeros(len(prompts), dtype=torch.long, device=model.device))
    longest = max(map(len, prompts)) - start
    ids = [[pad] * (longest + start - len(prompt)) + list(prompt[start:]) for prompt in prompts]
    lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=model.device)
    own = torch.arange(longest, device=model.device)[None] >= longest + start - lengths
    positions = (start + own.cumsum(-1) - 1).clamp_(min=0)
    mask = torch.cat([own.new_ones(len(prompts), start), own], dim=1)
    return Rows(cache, mask, lengths, _forward(model, torch.tensor(ids, device=model.device), mask, positions, cache))


def advance(model: PreTrainedModel, rows: Rows, tokens: torch.Tensor, alive: torch.Tensor | None = None) -> Rows:
    """Append one token [rows] to each row, or only to those of `alive` [rows] (the logits of the others are then meaningless).

    The cache of `rows` is extended in place: `rows` must not be used again."""
    grown = rows.mask.new_ones(len(rows), 1) if alive is None else alive[:, None]
    mask = torch.cat([rows.mask, grown], dim=1)
    logits = _forward(model, tokens[:, None], mask, rows.lengths, rows.cache)
    return Rows(rows.cache, mask, rows.lengths + grown.long(), logits)


def read_tree(
    model: PreTrainedModel, cache: Cache, tokens: torch.Tensor, positions: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """Return the logits [rows, tokens, vocabulary] (float) after each of `tokens` [rows, tokens], which follow the columns of
    `cache` in branches: `seen` [rows, tokens, columns + tokens] is true where a token sees a column of the cache or a token."""
    output: Any = model(
        input_ids=tokens, attention_mask=seen[:, None], position_ids=positions, past_key_values=cache, use_cache=True
    )
    logits: torch.Tensor = output.logits.float()
    return logits


def take(rows: Rows, chosen: torch.Tensor) -> Rows:
    """Return new rows: those of `chosen` [k], in this order; a row may be chosen several times."""
    return Rows(select_rows(rows.cache, chosen), rows.mask[chosen], rows.lengths[chosen], rows.logits[chosen])


def join(parts: Sequence[Rows]) -> Rows:
    """Return all rows in one batch, without columns that no row uses."""
    compact = [_compact(part) for part in parts]
    longest = max(part.mask.shape[1] for part in compact)
    masks = [torch.nn.functional.pad(part.mask, (longest - part.mask.shape[1], 0)) for part in compact]
    return Rows(
        join_rows([part.cache for part in compact]),
        torch.cat(masks),
        torch.cat([part.lengths for part in compact]),
        torch.cat([part.logits for part in compact]),
    )


def _compact(rows: Rows) -> Rows:
    """Return the same rows with each one's columns moved to the right and unused columns on the left cut off."""
    longest = int(rows.lengths.max())
    columns = rows.mask.long().argsort(dim=1, stable=True)[:, -longest:]
    return Rows(gather_columns(rows.cache, columns), rows.mask.gather(1, columns), rows.lengths, rows.logits)


def _shared_start(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all prompts begin with, leaving one to each; 0 when that is not worth a pass of its own."""
    if len(prompts) == 1:
        return 0
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    shortest = min(map(len, prompts)) - 1
    shared = next((at for at in range(shortest) if first[at] != last[at]), shortest)
    return shared if shared >= _WORTH_SHARING else 0


def _forward(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Cache
) -> torch.Tensor:
    output: Any = model(
        input_ids=ids,
        attention_mask=_attention_mask(mask, ids.shape[1]),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: torch.Tensor = output.logits[:, -1].float()
    return logits


def _attention_mask(mask: torch.Tensor, queries: int) -> torch.Tensor:
    """Return the mask [rows, 1, queries, columns] that transformers would build in every pass from `mask` [rows, columns]."""
    columns = mask.shape[1]
    if queries == 1:
        return mask[:, None, None, :]
    causal = torch.ones(queries, columns, dtype=torch.bool, device=mask.device).tril(columns - queries)
    # A padding column sees itself, else its softmax would be over nothing.
    own = causal.triu(columns - queries)
    return (causal & mask[:, None, :] | own)[:, None]
