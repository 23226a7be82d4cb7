"""The log-probability with which a decoding draws a list, whatever was drawn and undone on the way: an impression's propensity.

Without redraws it is that of the draws. With redraws an item may also come second, after a repetition that was drawn and undone.
Say a repetition is drawn with probability r, this item with q while redraws are left and with g when none is. With R redraws left
before it, the item comes with R - i left with probability r^i q, and with none left with r^R g. R is the list's, so the items are
summed over from the first to the last. r is what no draw tells: the earlier items' tokens (and the query's) are read once more,
each as a branch where an item begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from serving.policy.engines.characters import DEAD
from serving.policy.engines.drafts import Draft, Score
from serving.policy.engines.forward_passes import Rows, read_tree
from serving.policy.engines.grammar import Choice, Grammar, allow
from serving.policy.engines.kv_cache import freeze, select_rows
from serving.policy.engines.sampling import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache

_LOGITS_AT_ONCE = 1 << 24
"""Numbers in the logits of one pass: 64 MiB."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts that were read: keys and values without the last token of each, which columns are theirs [prompts, columns], their
    last tokens and lengths [prompts]."""

    cache: Cache
    mask: torch.Tensor
    last: torch.Tensor
    lengths: torch.Tensor


@dataclass(slots=True)
class Tree:
    """What is read of one row: the prompt's last token (node 0), then the list's, and beside them what might have been drawn and
    undone. Each node has a token and its parent; `choices`: what the grammar allows after a node; `branches`: of the list's text
    with this number the (node, token after it) of every draw."""

    row: int
    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [0])
    depths: list[int] = field(default_factory=lambda: [0])
    choices: dict[int, Choice] = field(default_factory=dict)
    branches: list[tuple[int, list[tuple[int, int]]]] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)

    def grow(self, parent: int, token: int) -> int:
        """Return the node of a token after another one; it is new unless there is one."""
        node = self.children.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(self.depths[parent] + 1)
        return node

    def find_seen(self) -> npt.NDArray[np.bool_]:
        """Return what each node sees [nodes, nodes]: itself, its parent, and what that sees."""
        seen = np.eye(len(self.tokens), dtype=np.bool_)
        for node, parent in enumerate(self.parents):
            seen[node] |= seen[parent]
        return seen


def hold_prompts(rows: Rows, prompts: Sequence[Sequence[int]]) -> Prompts:
    """Hold what was read of the prompts (token ids) while lists are written after them, without copying it."""
    last = torch.tensor([prompt[-1] for prompt in prompts], device=rows.mask.device)
    columns = rows.mask.shape[1] - 1
    return Prompts(freeze(rows.cache, columns), rows.mask[:, :-1], last, rows.lengths[:, 0])


def find_logprobs(
    model: PreTrainedModel, prompts: Prompts, asked: Sequence[int], drafts: Sequence[Draft], sampler: Sampler
) -> list[float]:
    """Return each list's log-probability; draft r was written after prompt `asked[r]` with row r of the sampler."""
    repeated: dict[tuple[int, int], float] = {}
    trees = [grow_tree(row, draft, int(last)) for row, (draft, last) in enumerate(zip(drafts, prompts.last[asked], strict=True))]
    for some in _split([tree for tree in trees if tree.branches], len(drafts[0].grammar.tokens)):
        logits = _read(model, prompts, [asked[tree.row] for tree in some], some)
        repeated |= _find_repeated(some, logits, drafts[0].grammar, sampler)
    return [_sum_over_redraws(draft, row, repeated) for row, draft in enumerate(drafts)]


def grow_tree(row: int, draft: Draft, last: int) -> Tree:
    """Return the tree of a list: what might have been drawn and undone at each of its items. `last`: the prompt's last token."""
    tree, node = Tree(row, [last]), 0
    if not draft.given_redraws:
        return tree
    replay = Draft.begin(draft.grammar, draft.outline, 1)
    for token in draft.token_ids:
        if replay.start == len(replay.token_ids) and replay.part >= replay.outline.auxiliary:
            for ids in sorted(replay.repeats):
                _grow_branch(tree, node, replay, ids)
        node = tree.grow(node, token)
        replay.add(token)
    return tree


def _grow_branch(tree: Tree, node: int, replay: Draft, ids: Sequence[int]) -> None:
    """Add what would be drawn for this item, unless it has more tokens than it may have."""
    fork, outline = replay.copy(1), replay.outline
    if len(ids) >= outline.limits[fork.part] or len(fork.token_ids) + len(ids) >= outline.tokens:
        return
    draws = []
    for token in (*ids, outline.ends[fork.part]):
        if fork.state == DEAD:
            return
        if node not in tree.choices:
            tree.choices[node] = fork.choose(redrawing=True)
        draws.append((node, token))
        if len(draws) <= len(ids):
            node = tree.grow(node, token)
            fork.add(token)
    tree.branches.append((fork.part, draws))


def _split(trees: Sequence[Tree], vocabulary: int) -> Iterator[list[Tree]]:
    """Yield the trees in parts that are read in one pass."""
    part: list[Tree] = []
    for tree in trees:
        longest = max(len(one.tokens) for one in (*part, tree))
        if part and (len(part) + 1) * longest * vocabulary > _LOGITS_AT_ONCE:
            yield part
            part = []
        part.append(tree)
    if part:
        yield part


def _read(model: PreTrainedModel, prompts: Prompts, asked: Sequence[int], trees: Sequence[Tree]) -> torch.Tensor:
    """Return the logits [trees, nodes, vocabulary] after each node, padded behind."""
    device, longest = prompts.mask.device, max(len(tree.tokens) for tree in trees)
    rows = torch.tensor(asked, device=device)
    tokens, depths = (torch.zeros(len(trees), longest, dtype=torch.long) for _ in range(2))
    seen = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)  # padding sees itself, not nothing
    for slot, tree in enumerate(trees):
        size = len(tree.tokens)
        tokens[slot, :size], depths[slot, :size] = torch.tensor(tree.tokens), torch.tensor(tree.depths)
        seen[slot, :size, :size] = torch.from_numpy(tree.find_seen())
    before = prompts.mask[rows][:, None, :].expand(-1, longest, -1)
    positions = prompts.lengths[rows][:, None] - 1 + depths.to(device)
    all_seen = torch.cat([before, seen.to(device)], dim=2)
    return read_tree(model, select_rows(prompts.cache, rows), tokens.to(device), positions, all_seen)


def _find_repeated(
    trees: Sequence[Tree], logits: torch.Tensor, grammar: Grammar, sampler: Sampler
) -> dict[tuple[int, int], float]:
    """Return with which probability a repetition is drawn, by row and text."""
    points = {(slot, node): at for at, (slot, node) in enumerate((s, n) for s, tree in enumerate(trees) for n in tree.choices)}
    slots, nodes = torch.tensor(list(points), device=logits.device).T
    rows = torch.tensor([trees[slot].row for slot, _ in points], device=logits.device)
    allowed = allow(grammar, [choice for tree in trees for choice in tree.choices.values()])
    shares = sampler.take(rows).share(logits[slots, nodes], allowed)
    branches = [(slot, part, draws) for slot, tree in enumerate(trees) for part, draws in tree.branches]
    pairs = [(points[slot, node], token) for slot, _, draws in branches for node, token in draws]
    at, tokens = torch.tensor(pairs, device=logits.device).T
    scores = shares.score(at, tokens).double()
    scores_of = torch.split(scores, [len(draws) for _, _, draws in branches])
    repeated: dict[tuple[int, int], float] = {}
    for (slot, part, _), score in zip(branches, scores_of, strict=True):
        key = trees[slot].row, part
        repeated[key] = repeated.get(key, 0.0) + math.exp(score.sum())
    return repeated


def _sum_over_redraws(draft: Draft, row: int, repeated: dict[tuple[int, int], float]) -> float:
    """Return the list's log-probability: the sum over how many redraws were used at which item."""
    left = np.zeros(draft.given_redraws + 1)
    left[-1] = 1.0
    total = 0.0
    for part, score in enumerate(draft.scores):
        if part < draft.outline.auxiliary or not draft.given_redraws:
            total += score.final
            continue
        left, scale = _pass_item(left, score, repeated.get((row, part), 0.0))
        total += scale
    return total + math.log(left.sum())


def _pass_item(left: npt.NDArray[np.float64], score: Score, repeated: float) -> tuple[npt.NDArray[np.float64], float]:
    """Return the weights of the numbers of redraws left after an item, up to a factor, and the log of this."""
    scale = max(score.redrawing, score.final)
    reached = left.copy()  # before the draw that stays, with so many left
    for redraws in range(len(left) - 2, -1, -1):
        reached[redraws] += repeated * reached[redraws + 1]
    after = reached * math.exp(score.redrawing - scale)
    after[0] = reached[0] * math.exp(score.final - scale)
    return after, scale
