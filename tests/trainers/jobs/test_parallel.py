"""Trainings in parallel: results in order, the given threads, no process left, a killed one noticed."""

from __future__ import annotations

import multiprocessing
import os
from functools import partial

import pytest

from trainers.jobs.parallel import TrainingDied, run_apart


def threads_of(number: int) -> tuple[int, int, int]:
    import torch

    return number, torch.get_num_threads(), os.getpid()


def die() -> int:
    os.kill(os.getpid(), 9)
    return 0


def test_results_are_in_order_from_processes_of_their_own() -> None:
    answers = run_apart([partial(threads_of, 1), partial(threads_of, 2)], at_once=2, threads=1)
    assert [answer[:2] for answer in answers] == [(1, 1), (2, 1)]
    assert len({os.getpid(), *(pid for _, _, pid in answers)}) == 3
    assert multiprocessing.active_children() == []


def test_a_killed_training_is_noticed_and_the_other_ended() -> None:
    with pytest.raises(TrainingDied, match="code -9"):
        run_apart([die, partial(threads_of, 2)], at_once=2, threads=1)
    assert multiprocessing.active_children() == []
