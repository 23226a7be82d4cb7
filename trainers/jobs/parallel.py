"""Trainings in parallel: predictor and judge share nothing, so on a machine with two cores they are trained at the same time.

Each has a process, not a pool: a pool waits for ever for a worker that the kernel killed, and its workers outlive it.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class TrainingDied(RuntimeError):
    """A training process ended without a result; its output is in the job's log."""


def run_apart(calls: Sequence[Callable[[], Answer]], at_once: int, threads: int) -> list[Answer]:
    """Return the results of the calls, each made in a process of its own with `threads` torch threads, `at_once` of them at a
    time.

    Calls and results must be picklable. Raises TrainingDied when a call raises or its process is killed; no process is left."""
    answers: list[Answer] = []
    for first in range(0, len(calls), at_once):
        answers += _run_together(calls[first : first + at_once], threads)
    return answers


def _run_together(calls: Sequence[Callable[[], Answer]], threads: int) -> list[Answer]:
    started: list[tuple[SpawnProcess, Connection]] = []
    try:
        for call in calls:
            started.append(_start(call, threads))
        return [_receive(process, receiving) for process, receiving in started]
    finally:
        for process, receiving in started:
            process.terminate()
            process.join()
            receiving.close()


def _start(call: Callable[[], Any], threads: int) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, call, threads), daemon=True)
    process.start()
    sending.close()
    return process, receiving


def _receive(process: SpawnProcess, receiving: Connection) -> Any:
    try:
        return receiving.recv()
    except EOFError:
        process.join()
        raise TrainingDied(
            f"a training process ended with code {process.exitcode}; the lines above in this log say why"
        ) from None


def _answer(sending: Connection, call: Callable[[], Any], threads: int) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    from streams.runtime.logs import configure_logs

    configure_logs()
    torch.set_num_threads(threads)
    sending.send(call())
    sending.close()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
