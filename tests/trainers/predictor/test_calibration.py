"""Isotonic calibration repairs a distorted predictor, keeps the order, and leaves well alone where clicks are few."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serving.predictor.calibration import Calibration
from trainers.predictor.calibration import fit_calibration
from trainers.predictor.metrics import ece


def test_a_distorted_predictor_is_repaired_on_other_data() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(-2, 1, 40_000)
    clicks = (rng.random(40_000) < 1 / (1 + np.exp(-true))).astype(np.float64)
    distorted = 2 * true + 1
    curve = fit_calibration(distorted[:20_000], clicks[:20_000], 100)
    rest = slice(20_000, None)
    assert ece(curve.apply(distorted[rest]), clicks[rest]) < 0.02 < 0.05 < ece(Calibration().apply(distorted[rest]), clicks[rest])


def test_few_clicks_give_no_curve() -> None:
    assert fit_calibration(np.arange(1000.0), np.r_[np.ones(499), np.zeros(501)], 100) == Calibration()
    assert fit_calibration(np.arange(1000.0), np.ones(1000), 100) == Calibration()


@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), max_size=200))
def test_any_data_gives_a_rising_curve_or_none(rows: list[tuple[float, bool]]) -> None:
    logits, clicks = np.array([x for x, _ in rows]), np.array([float(y) for _, y in rows])
    curve = fit_calibration(logits, clicks, 2)
    assert np.all(np.diff(curve.shift(np.linspace(-9, 9, 50))) >= 0)


def test_adjacent_violators_are_pooled() -> None:
    # Five runs of one click: their rates .5, 1, .25 pool to 3/7.
    clicks = np.array([0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1], np.float64)
    curve = fit_calibration(np.arange(12.0), clicks, 1)
    rates = 1 / (1 + np.exp(-np.array(curve.after)))
    assert np.all(np.diff(rates) > 0) and len(rates) < 5
