"""Fits the curve that makes predicted click rates equal observed ones on held-out lists (G7): isotonic regression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from serving.predictor.calibration import Calibration

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# With fewer, the curve adds more error than it removes: on some 120 clicks the mean prediction was 13 to 16 % too high with it,
# 7 % too low without (simulated product, true rates known).
FEWEST_KNOTS = 5


def fit_calibration(logits: Floats, clicks: Floats, min_clicks: int) -> Calibration:
    """Return the centred isotonic regression of clicks on logits, or no curve where clicks are few.

    Its knots are the centres of the pooled blocks, each of which has `min_clicks` clicks at least, so that no knot rests on
    chance."""
    if clicks.sum() < FEWEST_KNOTS * min_clicks or len(clicks) == clicks.sum():
        return Calibration()
    order = np.argsort(logits, kind="stable")
    centres, rates = _pool(logits[order], clicks[order], min_clicks)
    kept = np.concatenate([[True], np.diff(centres) > 0])
    centres, rates = centres[kept], np.clip(rates[kept], 1e-6, 1 - 1e-6)
    return Calibration(tuple(centres.tolist()), tuple(np.log(rates / (1 - rates)).tolist()))


def _pool(logits: Floats, clicks: Floats, min_clicks: int) -> tuple[Floats, Floats]:
    """Pool adjacent violators over runs of `min_clicks` clicks each; return the blocks' mean logits and click rates."""
    run = np.minimum((np.cumsum(clicks) - clicks) // min_clicks, clicks.sum() // min_clicks - 1).astype(np.int64)
    sums = (np.bincount(run), np.bincount(run, logits), np.bincount(run, clicks))
    blocks: list[tuple[float, float, float]] = []
    for block in zip(*sums, strict=True):
        blocks.append(block)
        while len(blocks) > 1 and blocks[-2][2] / blocks[-2][0] >= blocks[-1][2] / blocks[-1][0]:
            last, before = blocks.pop(), blocks.pop()
            blocks.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    sizes, logit_sums, click_sums = np.array(blocks, np.float64).T
    return logit_sums / sizes, click_sums / sizes
