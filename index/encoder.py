"""Turns a query into a unit vector: hashed words and character n-grams, averaged and projected.

Serving calls it between two requests, so encoding is plain NumPy on read-only arrays: no torch, no lock, no thread pool.
`index.encoder_training` learns the weights.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streams.events.normal_form import normalise

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS, CONFIG = "encoder.safetensors", "encoder.json"
MAX_CHARS = 256


@dataclass(frozen=True)
class FeatureSpace:
    """How text becomes features: `buckets` hash buckets, n-grams of `min_ngram` to `max_ngram` characters within each word."""

    buckets: int
    min_ngram: int
    max_ngram: int

    def hash(self, text: str) -> NDArray[np.int64]:
        """Return the buckets [f >= 1] of a query's words and their n-grams; what follows the first 256 characters is ignored."""
        words = normalise(text)[:MAX_CHARS].split() or [""]
        return np.concatenate([_hash_word(word, self.buckets, self.min_ngram, self.max_ngram) for word in words])


@dataclass(frozen=True)
class Encoder:
    """`table` float32 [buckets, d] and `projection` float32 [d, d], as trained."""

    space: FeatureSpace
    table: NDArray[np.float32]
    projection: NDArray[np.float32]

    @cached_property
    def dim(self) -> int:
        return int(self.projection.shape[0])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors float32 [n, d]; the same text gives the same vector in any batch."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        means = np.stack([self.table[self.space.hash(text)].mean(axis=0) for text in texts])
        # One row at a time in the sum: a matrix product's rounding depends on the number of rows.
        return unit(np.einsum("nd,ed->ne", means, self.projection))

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and configuration into an existing folder."""
        from safetensors.numpy import save_file

        save_file(
            {"table": np.ascontiguousarray(self.table), "projection": np.ascontiguousarray(self.projection)}, folder / WEIGHTS
        )
        (folder / CONFIG).write_text(json.dumps(asdict(self.space), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read what `save` wrote; ValueError when the weights do not fit the configuration."""
        from safetensors.numpy import load_file

        space = FeatureSpace(**json.loads((folder / CONFIG).read_text()))
        weights = load_file(folder / WEIGHTS)
        if weights["table"].shape[0] != space.buckets:
            raise ValueError(f"{folder / WEIGHTS}: {weights['table'].shape[0]} rows, but {CONFIG} says {space.buckets} buckets")
        return cls(space, weights["table"], weights["projection"])


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1 (a zero row stays zero)."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))[:, None]
    return np.ascontiguousarray(vectors / np.maximum(lengths, 1e-12), dtype=np.float32)


@lru_cache(maxsize=65_536)
def _hash_word(word: str, buckets: int, min_ngram: int, max_ngram: int) -> NDArray[np.int64]:
    marked = f"<{word}>"
    grams = [marked[at : at + size] for size in range(min_ngram, max_ngram + 1) for at in range(len(marked) - size + 1)]
    # The whole word has a feature of its own, apart from an n-gram of the same letters.
    hashes = [_crc("w" + word), *(_crc("g" + gram) for gram in grams)]
    return np.array(hashes, dtype=np.int64) % buckets


def _crc(text: str) -> int:
    # Half a surrogate pair is no valid UTF-8, but may be in a query that somebody typed.
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))
