"""Builds an index from a co-occurrence table: dictionary, encoder, neighbours, all in one folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.dictionary import make_dictionary, read_triples
from index.encoder_training import train_encoder
from index.neighbours import build_neighbours
from index.retrieve import Index
from index.settings import IndexSettings

if TYPE_CHECKING:
    import pyarrow as pa


def build_index(cooccurrence: pa.Table, out: Path, settings: IndexSettings) -> dict[str, Any]:
    """Write an index of a (query, next_query, count) table into the existing folder `out`; an empty table is allowed.

    Returns {queries, pairs, neighbours, steps, loss, seconds}. ValueError when a column is missing."""
    started = time.monotonic()
    dictionary = make_dictionary(read_triples(cooccurrence), min_count=settings.min_count, max_successors=settings.max_successors)
    encoder, training = train_encoder(dictionary, settings)
    neighbours = build_neighbours(encoder.encode(dictionary.queries), settings.exact_up_to)
    Index(dictionary, encoder, neighbours, settings.neighbours, settings.min_similarity).save(out)
    return {
        "queries": len(dictionary),
        "pairs": sum(len(found) for found in dictionary.successors.values()),
        "neighbours": neighbours.kind,
        **training,
        "seconds": round(time.monotonic() - started, 3),
    }
