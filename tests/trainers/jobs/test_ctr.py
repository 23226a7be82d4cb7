"""The ctr job's outcome in words."""

from __future__ import annotations

import numpy as np

from trainers.jobs.ctr import describe_auc
from trainers.predictor.metrics import auc


def test_held_out_sessions_without_a_click_have_no_auc_and_the_job_says_so() -> None:
    p = np.array([0.1, 0.2, 0.3])
    assert (
        describe_auc(auc(p, np.zeros(3))) == describe_auc(auc(p, np.ones(3))) == "without an auc (all held-out positions alike)"
    )
    assert describe_auc(auc(p, np.array([0.0, 0.0, 1.0]))) == "auc 1.000"
