"""How good a click predictor is on held-out lists: AUC, log loss, diff_ctr (eq. 9), ECE, also by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

BINS = 10


def measure(probabilities: Sequence[Floats], clicks: Sequence[Sequence[bool]], days: Sequence[int]) -> dict[str, Any]:
    """Return {auc, logloss, diff_ctr, ece, positions, clicks, by_position: {k: {auc, ece, predicted, clicked}}}.

    A figure without a value is None: AUC where nothing or everything was clicked, diff_ctr where nothing was."""
    p = np.concatenate([np.zeros(0), *probabilities])
    y = np.array([click for row in clicks for click in row], np.float64)
    position = np.array([k for row in clicks for k in range(len(row))], np.int64)
    day = np.repeat(np.asarray(days, np.int64), [len(row) for row in clicks])
    return {
        "auc": auc(p, y),
        "logloss": logloss(p, y) if len(y) else None,
        "diff_ctr": diff_ctr(p, y, day),
        "ece": ece(p, y) if len(y) else None,
        "positions": len(y),
        "clicks": int(y.sum()),
        "by_position": {str(k): _describe(p[position == k], y[position == k]) for k in np.unique(position)},
    }


def auc(p: Floats, y: Floats) -> float | None:
    """Return the probability that a clicked item is ranked above one that was not, a tie counting half."""
    clicked = int(y.sum())
    if clicked in (0, len(y)):
        return None
    _, group, counts = np.unique(p, return_inverse=True, return_counts=True)
    # The mean rank of each group of equal predictions.
    rank = (np.cumsum(counts) - (counts - 1) / 2)[group]
    return float((rank[y == 1].sum() - clicked * (clicked + 1) / 2) / (clicked * (len(y) - clicked)))


def logloss(p: Floats, y: Floats) -> float:
    """Return the mean binary cross-entropy in nats, probabilities kept 1e-7 off 0 and 1."""
    safe = np.clip(p, 1e-7, 1 - 1e-7)
    return float(-np.mean(y * np.log(safe) + (1 - y) * np.log1p(-safe)))


def diff_ctr(p: Floats, y: Floats, day: NDArray[np.int64]) -> float | None:
    """Eq. 9: mean over days i of |p_i * mean(real) / mean(p) - real_i|, p_i the day's mean prediction, real_i its CTR."""
    _, group, counts = np.unique(day, return_inverse=True, return_counts=True)
    predicted = np.bincount(group, p, len(counts)) / counts
    real = np.bincount(group, y, len(counts)) / counts
    if not len(counts) or not predicted.mean() or not real.mean():
        return None
    return float(np.mean(np.abs(predicted * real.mean() / predicted.mean() - real)))


def ece(p: Floats, y: Floats, bins: int = BINS) -> float:
    """Return the expected calibration error over `bins` groups of equal size: mean |mean prediction - click rate|."""
    groups = np.array_split(np.argsort(p, kind="stable"), min(bins, len(p)))
    return float(sum(len(rows) * abs(p[rows].mean() - y[rows].mean()) for rows in groups) / len(p))


def _describe(p: Floats, y: Floats) -> Mapping[str, float | None]:
    return {"auc": auc(p, y), "ece": ece(p, y), "predicted": float(p.mean()), "clicked": float(y.mean())}
