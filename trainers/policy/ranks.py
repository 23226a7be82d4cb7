"""Trains a policy in several processes, one a CUDA device, with the same command as in one.

The job's process searches, tests and publishes; where there are several devices it has SFT and DPO done by ranks, processes that
torch's elastic launcher starts on this machine (`accelerate launch` starts the same one). Each rank takes its share of a step's
batch, so a step means the same whatever the number of ranks. One process trains where the job runs, without any of this.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from streams.runtime.logs import configure_logs
from trainers.policy.memory import is_out_of_memory

if TYPE_CHECKING:
    import torch
    from torch.distributed.launcher.api import LaunchConfig

Processes = int | Literal["auto"]
Train = Callable[..., dict[str, float]]
T = TypeVar("T")


class RankFault(RuntimeError):
    """Training in several processes that cannot start, or one of which failed; the text says why."""


def choose_processes(wanted: Processes, device: torch.device) -> int:
    """Return how many processes train: for `auto` one a CUDA device, one on a CPU. Raises RankFault for too few devices."""
    if device.type != "cuda":
        return 1 if wanted == "auto" else wanted
    import torch

    there = torch.cuda.device_count()
    if wanted != "auto" and wanted > there:
        raise RankFault(
            f"policy.processes = {wanted}: this machine has {there} CUDA devices and each process needs one: say {there}, or auto"
        )
    return there if wanted == "auto" else wanted


def train_in_ranks(train: Train, arguments: Sequence[Any], processes: int, device: torch.device) -> dict[str, float]:
    """Run `train(*arguments)` in so many processes and return what the first returns; one process is this one.

    Raises MemoryError where memory ran out in a rank, RankFault where one failed otherwise; the others are ended."""
    if processes == 1:
        return train(*arguments)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _free_devices(device)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder, _own_signals():
        launch = elastic_launch(_describe_launch(processes, folder), _run_rank)
        try:
            figures: dict[str, float] = launch(train, tuple(arguments), device.type, folder)[0]
        except ChildFailedError as error:
            raise _read_fault(Path(folder), processes, error) from error
    return figures


def find_rank() -> tuple[int, int]:
    """Return the number of this process among those that train together, from 0, and how many they are."""
    import torch.distributed as ranks

    return (ranks.get_rank(), ranks.get_world_size()) if ranks.is_available() and ranks.is_initialized() else (0, 1)


def is_first() -> bool:
    """Return whether this process saves what was learned and shows how far it is."""
    return find_rank()[0] == 0


def take_share(items: Sequence[T]) -> Sequence[T]:
    """Return this rank's part of a step's batch, every one an item once; of a batch sorted by length the shares are alike."""
    rank, ranks = find_rank()
    return items[rank::ranks]


def copy_from_first(weights: Sequence[torch.Tensor]) -> None:
    """Give all ranks the first one's weights."""
    if find_rank()[1] == 1:
        return
    import torch

    for weight in weights:
        torch.distributed.broadcast(weight.data, 0)


def add_up(weights: Sequence[torch.Tensor], figure: float) -> float:
    """Add up the gradients of all ranks in each of them, and return the sum of their figures."""
    if find_rank()[1] == 1:
        return figure
    import torch

    total = torch.tensor(figure, dtype=torch.float32, device=weights[0].device)
    for weight in weights:
        if weight.grad is None:  # this rank's share was empty
            weight.grad = torch.zeros_like(weight)
        torch.distributed.all_reduce(weight.grad)
    torch.distributed.all_reduce(total)
    return float(total)


def _run_rank(train: Train, arguments: tuple[Any, ...], kind: str, folder: str) -> dict[str, float]:
    """Run in a process that the launcher started: join the others, train, and leave word of what went wrong."""
    configure_logs()
    try:
        _join(kind)
        figures = train(*arguments)
    except Exception as error:
        words = {"memory": is_out_of_memory(error), "words": f"{type(error).__name__}: {error}"}
        Path(folder, f"{time.time_ns()}.json").write_text(json.dumps(words), encoding="utf-8")
        raise
    import torch

    torch.distributed.destroy_process_group()
    return figures


def _join(kind: str) -> None:
    import torch

    local, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    if kind == "cuda":
        torch.cuda.set_device(local)  # "cuda" means this one from now on
        torch.distributed.init_process_group("nccl", device_id=torch.device("cuda", local))
        return
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else accelerate chooses, and warns
    torch.set_num_threads(threads)
    torch.distributed.init_process_group("gloo")


def _describe_launch(processes: int, folder: str) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="spawn",  # a fork could not use CUDA where this process did
        logs_specs=DefaultLogsSpecs(log_dir=str(Path(folder, "launcher"))),
    )


def _free_devices(device: torch.device) -> None:
    """Give what this process no longer uses of the first device to the rank that trains there."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Let a signal end this process as it would have, after the launcher, which takes the signals, has ended the ranks."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    taken = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {one: signal.getsignal(one) for one in taken}
    try:
        yield
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for one, handler in before.items():
                signal.signal(one, handler)


def _read_fault(folder: Path, processes: int, error: Any) -> Exception:
    """Return the words of the first rank that failed; one that was killed left none, and the others only lost it."""
    failure = error.get_first_failure()[1]
    left = sorted(folder.glob("*.json"))
    if failure.exitcode == -signal.SIGKILL or not left:
        return RankFault(
            f"one of the {processes} training processes ended: {failure.message}. A system without memory kills processes so"
        )
    fault = json.loads(left[0].read_text(encoding="utf-8"))
    if fault["memory"]:
        return MemoryError(fault["words"])
    return RankFault(f"one of the {processes} training processes failed: {fault['words']}")
