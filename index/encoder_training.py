"""Trains the query encoder by contrastive learning: queries that follow one another are similar, and so are two views of a query.

InfoNCE over co-occurring pairs, every other pair of the batch a negative, plus SimCSE's term: one query with two dropout
masks (G16, step 2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from index.encoder import Encoder, FeatureSpace
from index.settings import IndexSettings

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from index.dictionary import Dictionary

Batch = tuple["NDArray[np.int64]", "NDArray[np.int64]"]


def train_encoder(dictionary: Dictionary, settings: IndexSettings) -> tuple[Encoder, dict[str, float]]:
    """Learn from a dictionary's pairs; returns the encoder and {steps, loss}. No pairs: random weights and 0 steps.

    The same dictionary, settings and thread count give the same weights; torch's own random state is left as it was."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("training the query encoder needs torch: pip install 'queryloop[cpu]' (or queryloop[gpu])") from error
    space = FeatureSpace(settings.buckets, settings.min_ngram, settings.max_ngram)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        table = torch.nn.EmbeddingBag(settings.buckets, settings.dim, mode="mean", sparse=True)
        torch.nn.init.normal_(table.weight, std=settings.dim**-0.5)
        projection = torch.nn.Linear(settings.dim, settings.dim, bias=False)
        torch.nn.init.eye_(projection.weight)
        losses = _fit(table, projection, dictionary, space, settings)
    encoder = Encoder(space, table.weight.detach().numpy(), projection.weight.detach().numpy())
    return encoder, {"steps": len(losses), "loss": float(np.mean(losses[-20:])) if losses else 0.0}


def _fit(
    table: torch.nn.EmbeddingBag,
    projection: torch.nn.Linear,
    dictionary: Dictionary,
    space: FeatureSpace,
    settings: IndexSettings,
) -> list[float]:
    import torch

    texts, pairs, weights = _list_pairs(dictionary)
    features = [space.hash(text) for text in texts]
    rng = np.random.default_rng(settings.seed)
    table_optimizer = torch.optim.SparseAdam(table.parameters(), lr=settings.learning_rate)
    projection_optimizer = torch.optim.Adam(projection.parameters(), lr=settings.learning_rate / 10)

    def embed(rows: NDArray[np.int64]) -> torch.Tensor:
        flat, offsets = _drop_features([features[row] for row in rows], settings.dropout, rng)
        return torch.nn.functional.normalize(projection(table(flat, offsets)), dim=1)

    losses = []
    for queries, following in _draw_batches(pairs, weights, settings, rng):
        near = embed(queries)
        loss = info_nce(near, embed(following), queries, following, settings.temperature)
        loss = loss + info_nce(near, embed(queries), queries, queries, settings.temperature)
        table_optimizer.zero_grad()
        projection_optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        table_optimizer.step()  # type: ignore[no-untyped-call]
        projection_optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def info_nce(
    left: torch.Tensor, right: torch.Tensor, left_ids: NDArray[np.int64], right_ids: NDArray[np.int64], temperature: float
) -> torch.Tensor:
    """Symmetric InfoNCE of unit vectors [b, d], row i with row i; a text twice in the batch is no negative of itself."""
    import torch

    same = (right_ids[None, :] == right_ids[:, None]) | (left_ids[None, :] == left_ids[:, None])
    np.fill_diagonal(same, False)
    scores = (left @ right.T / temperature).masked_fill(torch.from_numpy(same), -1e9)
    target = torch.arange(len(left_ids))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2


def _list_pairs(dictionary: Dictionary) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Return all texts, pairs [p, 2] of text numbers, and each pair's share: by the root of its count, to draw rare ones too."""
    triples = [(query, text, count) for query in dictionary.queries for text, count in dictionary.successors[query]]
    texts = sorted({text for query, following, _ in triples for text in (query, following)})
    number = {text: row for row, text in enumerate(texts)}
    pairs = np.array([(number[query], number[following]) for query, following, _ in triples], np.int64).reshape(-1, 2)
    weights = np.sqrt(np.array([count for _, _, count in triples], np.float64))
    return texts, pairs, weights / max(weights.sum(), 1.0)


def _draw_batches(
    pairs: NDArray[np.int64], weights: NDArray[np.float64], settings: IndexSettings, rng: np.random.Generator
) -> Iterator[Batch]:
    if len(pairs) < 2:
        return
    size = min(settings.batch, len(pairs))
    steps = min(settings.epochs * -(-len(pairs) // size), settings.max_steps)
    for _ in range(steps):
        drawn = pairs[rng.choice(len(pairs), size, p=weights)]
        yield drawn[:, 0], drawn[:, 1]


def _drop_features(
    features: Sequence[NDArray[np.int64]], dropout: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (flat buckets, offsets) of the texts with some features dropped, at least one a text kept."""
    import torch

    flat = np.concatenate(features)
    owner = np.repeat(np.arange(len(features)), [len(found) for found in features])
    kept = rng.random(len(flat)) >= dropout
    firsts = np.searchsorted(owner, np.arange(len(features)))
    kept[firsts] = True
    counts = np.bincount(owner[kept], minlength=len(features))
    return torch.from_numpy(flat[kept]), torch.from_numpy(np.concatenate([[0], np.cumsum(counts)[:-1]]))
