"""Skew: how unevenly sessions of very different lengths are spread over partitions by Kafka's murmur2 of their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORDS = 4
"""A session id of 16 bytes, as four 32-bit words."""
MULTIPLIER = 0x5BD1E995
SEED = 0x9747B28C


def draw_sessions(rng: np.random.Generator, sessions: int, mean: float, tail: float, most: float) -> NDArray[Any]:
    """Draw events a session from a Pareto distribution with this tail exponent (> 1), at most `most`, scaled to the mean."""
    import numpy as np

    drawn = np.minimum(1.0 + rng.pareto(tail, sessions), most)
    scaled: NDArray[Any] = drawn * (mean / drawn.mean())
    return scaled


def partition_shares(rng: np.random.Generator, weights: NDArray[Any], partitions: int) -> NDArray[Any]:
    """Give each session a random id and return each partition's share of all weight (they sum to 1)."""
    import numpy as np

    ids = rng.integers(0, 2**32, (len(weights), WORDS), dtype=np.uint32)
    assigned = (murmur2(ids) & np.uint32(0x7FFFFFFF)) % np.uint32(partitions)
    loads = np.bincount(assigned, weights, partitions)
    shares: NDArray[Any] = loads / loads.sum()
    return shares


def murmur2(words: NDArray[Any]) -> NDArray[Any]:
    """Return Kafka's murmur2 of many keys at once: `words` is (keys, n) uint32, each row a key of 4 n bytes, little-endian."""
    import numpy as np

    many, shift = np.uint32(MULTIPLIER), np.uint32(24)
    with np.errstate(over="ignore"):
        hashes = np.full(len(words), np.uint32(SEED ^ (4 * words.shape[1])), np.uint32)
        for column in range(words.shape[1]):
            k = words[:, column] * many
            k = (k ^ (k >> shift)) * many
            hashes = hashes * many ^ k
        hashes = (hashes ^ (hashes >> np.uint32(13))) * many
        return hashes ^ (hashes >> np.uint32(15))
