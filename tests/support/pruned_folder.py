"""A data folder with old and new releases and artifacts to prune, and a process that is killed while it prunes it.

As a program (`python -m tests.support.pruned_folder FOLDER`) it prunes copies of FOLDER/whole, each in a process that is killed
at another step: FOLDER/1 at the first one, and so on until a process ends by itself. Each step is an audit event of Python
that concerns the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

from serving.releases import registry
from streams.runtime import artifacts
from trainers.jobs.prune import remove
from trainers.jobs.settings import TrainerSettings

DAY_S = 86_400.0
LATER_S = 40 * DAY_S
"""How long after the folder was made the tests prune it: everything in it is older than prune.keep_days then."""
STEPS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link")


def later() -> float:
    """A clock of that time."""
    return time.time() + LATER_S


def make_artifact(root: Path, kind: str, size: int = 1000, **meta: Any) -> Path:
    """Publish an artifact of two files, one of them in a folder."""

    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(os.urandom(size))
        (folder / "more").mkdir()
        (folder / "more" / "config.json").write_text("{}")

    return artifacts.publish(root / "artifacts", kind, fill, meta).path


def make_releases(root: Path, number: int) -> list[str]:
    """Publish and promote releases; each has a policy of its own, all but the last the same predictor, and pairs an index."""
    shared, ids = make_artifact(root, "predictor"), []
    for turn in range(number):
        if turn % 2 == 0:
            index = make_artifact(root, "index")
        predictor = shared if turn < number - 1 else make_artifact(root, "predictor")
        made = registry.publish(root, policy=make_artifact(root, "policy"), predictor=predictor, index=index)
        ids.append(made.id)
        registry.promote(root, made.id)
    return ids


def make_settings(root: Path, **prune: Any) -> TrainerSettings:
    """Settings of this folder, which keep two releases and 30 days unless something else is given."""
    return TrainerSettings.model_validate({"data": {"dir": root}, "prune": {"keep_releases": 2, **prune}})


def verify_all(root: Path) -> list[str]:
    """Read every byte of each release that is not pruned, and of each visible artifact; return the ids of those releases."""
    for folder in artifacts.list_folders(root / "artifacts"):
        artifacts.load(folder)
    kept = [one for one in registry.list_releases(root) if one.pruned is None]
    for release in kept:
        registry.verify(root, release)
    return [one.id for one in kept]


def list_files(root: Path) -> set[str]:
    """The files below a folder."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def _prune_until_killed(root: Path, step: int) -> None:
    """Prune in this process, and kill it at that step."""
    steps = count(1)

    def see(event: str, details: tuple[Any, ...]) -> None:
        if event in STEPS and str(root) in str(details[0]) and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    settings = make_settings(root)
    sys.addaudithook(see)
    remove(settings, later)
    os._exit(0)


def _main(folder: Path) -> None:
    for step in count(1):
        root = folder / str(step)
        shutil.copytree(folder / "whole", root, copy_function=shutil.copy2)
        child = os.fork()
        if child == 0:
            _prune_until_killed(root, step)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            return


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
