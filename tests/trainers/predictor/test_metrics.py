"""The predictor's figures against their definitions, computed directly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.predictor.metrics import auc, diff_ctr, ece, logloss, measure

pairs = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.booleans()), min_size=1, max_size=30)


@given(pairs)
def test_auc_is_the_share_of_pairs_ranked_right(rows: list[tuple[float, bool]]) -> None:
    clicked, others = [p for p, y in rows if y], [p for p, y in rows if not y]
    wins = [(a > b) + 0.5 * (a == b) for a in clicked for b in others]
    got = auc(np.array([p for p, _ in rows]), np.array([float(y) for _, y in rows]))
    assert got is None if not wins else got == pytest.approx(sum(wins) / len(wins))


def test_logloss_is_the_mean_surprise() -> None:
    assert logloss(np.array([0.25, 0.5]), np.array([1.0, 0.0])) == pytest.approx((np.log(4) + np.log(2)) / 2)


def test_diff_ctr_is_equation_9() -> None:
    p, y, day = np.array([0.2, 0.4, 0.1, 0.1]), np.array([1.0, 0.0, 0.0, 0.0]), np.array([3, 3, 5, 5])
    # Days: predicted .3 and .1 (mean .2), real .5 and 0 (mean .25).
    assert diff_ctr(p, y, day) == pytest.approx((abs(0.3 * 0.25 / 0.2 - 0.5) + abs(0.1 * 0.25 / 0.2 - 0)) / 2)
    assert diff_ctr(p, np.zeros(4), day) is None


def test_calibration_error_is_nothing_for_right_and_all_for_wrong_numbers() -> None:
    y = np.array([1.0, 0.0] * 50)
    assert ece(np.full(100, 0.5), y) == pytest.approx(0)
    assert ece(np.full(100, 0.9), y) == pytest.approx(0.4)


def test_figures_by_position_and_what_has_no_value() -> None:
    got = measure([np.array([0.5, 0.1]), np.array([0.2])], [[True, False], [False]], [1, 2])
    assert (got["auc"], got["positions"], got["clicks"]) == (1.0, 3, 1)
    assert got["by_position"]["0"]["predicted"] == pytest.approx(0.35) and got["by_position"]["1"]["auc"] is None
    assert measure([], [], [])["logloss"] is None
