"""Maps a predictor's logit to the click rate that was observed for it (G7): a monotone curve through a few knots.

`trainers.predictor.calibration` fits it; this file applies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Calibration:
    """Knots of a curve logit -> logit, both rising. No knots: the logit is taken as it is."""

    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        rises = all(a < b for a, b in zip(self.before, self.before[1:], strict=False))
        if len(self.before) != len(self.after) or not rises or list(self.after) != sorted(self.after):
            raise ValueError("a calibration needs as many knots before as after, both rising")

    def apply(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return click probabilities. Between knots the curve is straight, beyond the outer ones it keeps its distance, so that
        a higher logit never loses to a lower one and the best candidates do not tie."""
        return 1.0 / (1.0 + np.exp(-self.shift(logits)))

    def shift(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return calibrated logits."""
        if not self.before:
            return logits
        inside = np.clip(logits, self.before[0], self.before[-1])
        moved: NDArray[np.float64] = np.interp(inside, self.before, self.after) + (logits - inside)
        return moved
