"""The click rates of window cells by their definitions, in exact fractions, to compare the product's floats with."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

DEFAULT, PSEUDO, ENOUGH = Fraction(1, 20), 20, 100
"""The rate of a window without data, how many impressions a weak prior weighs, and how many a position needs to say more."""

Cell = tuple[str, str, int, int, int]
"""Query, item, position, impressions, clicks."""


def expected_smoothed(cells: Sequence[Cell]) -> dict[tuple[str, str, int], Fraction]:
    """The posterior mean of each (query, item, position) under the Beta prior of its position, fitted by Kleinman's moments.

    Its mean is that of the position drawn to the one of all positions, which is drawn to DEFAULT; with few impressions it weighs
    PSEUDO of them.
    """
    rates = {}
    overall = (sum(cell[4] for cell in cells) + DEFAULT * PSEUDO) / (sum(cell[3] for cell in cells) + PSEUDO)
    for position in {cell[2] for cell in cells}:
        same = [cell for cell in cells if cell[2] == position]
        shown, clicked = sum(cell[3] for cell in same), sum(cell[4] for cell in same)
        mean, strength = Fraction(clicked, shown), Fraction(10**6)
        if 0 < mean < 1 and shown > len(same):
            spread = sum(n * (Fraction(c, n) - mean) ** 2 for *_, n, c in same) / (mean * (1 - mean))
            rho = (spread - len(same)) / (shown - len(same))
            strength = min(max(1 / rho - 1, Fraction(1)), Fraction(10**6)) if rho > 0 else strength
        mean = (clicked + overall * PSEUDO) / (shown + PSEUDO)
        strength = Fraction(PSEUDO) if shown < ENOUGH else strength
        for query, item, _, n, c in same:
            rates[query, item, position] = (c + mean * strength) / (n + strength)
    return rates


def expected_coec(cells: Sequence[Cell]) -> dict[tuple[str, str], Fraction | None]:
    """The clicks of each (query, item) over those that its impressions would get at their positions' mean rates.

    None where fewer than one is expected, or a position has under ENOUGH impressions."""
    ratios: dict[tuple[str, str], Fraction | None] = {}
    for pair in {cell[:2] for cell in cells}:
        own = [cell for cell in cells if cell[:2] == pair]
        wanted, known = Fraction(0), True
        for *_, position, n, _ in own:
            same = [cell for cell in cells if cell[2] == position]
            known &= sum(cell[3] for cell in same) >= ENOUGH
            wanted += n * Fraction(sum(cell[4] for cell in same), sum(cell[3] for cell in same))
        ratios[pair] = sum(cell[4] for cell in own) / wanted if known and wanted >= 1 else None
    return ratios
