"""All settings of one machine in one frozen object: the sections of every room, as the command line needs them."""

from __future__ import annotations

import argparse
import os
from itertools import combinations
from pathlib import Path
from typing import Self

from pydantic import model_validator

from queryloop.product.settings import ProductSettings
from serving.settings import ServingRoot
from streams.runtime.settings import SettingsError, load_settings
from streams.worker.settings import StreamsSettings
from trainers.jobs.settings import TrainerSettings
from trainers.policy.base_folder import BaseFault, check_folder


class Settings(TrainerSettings, ServingRoot, StreamsSettings, frozen=True, extra="forbid"):
    """The effective settings; each section is declared beside the code that reads it."""

    product: ProductSettings = ProductSettings()

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.product.task not in self.tasks:
            raise ValueError(f"product.task = {self.product.task!r} is none of the tasks: {', '.join(sorted(self.tasks))}")
        listening = [(name, getattr(self, name)) for name in ("serving", "worker", "timetable")]
        for (one, first), (other, second) in combinations(listening, 2):
            if first.port and (first.host, first.port) == (second.host, second.port):
                raise ValueError(f"{one}.port and {other}.port are both {first.port} on {first.host}")
        return self


def check_places(settings: Settings) -> None:
    """Raise SettingsError for every setting that names a file or a folder which is not there, or is something else."""
    faults = [*_file_faults("policy.annotations", settings.policy.annotations), *_base_faults(settings.policy.base)]
    for name, folder in (("data.dir", settings.data.dir), ("emitter.outbox_dir", settings.emitter.outbox_dir)):
        if folder is not None and folder.exists() and not folder.is_dir():
            faults.append(f"{name} = {str(folder)!r} is a file: name a folder, which is made where it does not exist")
    if faults:
        raise SettingsError("\n".join(faults))


def _file_faults(name: str, path: Path | None) -> list[str]:
    if path is None or path.is_file():
        return []
    what = "is a folder" if path.is_dir() else "does not exist"
    return [f"{name} = {str(path)!r} {what}: name a file"]


def _base_faults(base: str) -> list[str]:
    try:
        check_folder(base)
    except BaseFault as error:
        return [str(error)]
    return []


def read_settings(options: argparse.Namespace) -> Settings:
    """Return the settings of a command: file and environment, and `--broker` over `kafka.broker`. Raises SettingsError."""
    chosen = getattr(options, "broker", None)
    return load_settings(Settings, options.config, {**os.environ, **({"QUERYLOOP_KAFKA_BROKER": chosen} if chosen else {})})


def read_settings_alone(options: argparse.Namespace) -> Settings:
    """Return what file and environment say, whatever `--broker` chose: what another command reads now. Raises SettingsError."""
    return load_settings(Settings, options.config)
