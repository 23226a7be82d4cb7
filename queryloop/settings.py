"""All settings of one machine in one frozen object: the sections of every room, as the command line needs them."""

from __future__ import annotations

import argparse

from queryloop.product.settings import ProductSettings
from serving.settings import ServingRoot
from streams.runtime.settings import load_settings
from streams.worker.settings import StreamsSettings
from trainers.jobs.settings import TrainerSettings


class Settings(TrainerSettings, ServingRoot, StreamsSettings, frozen=True, extra="forbid"):
    """The effective settings; each section is declared beside the code that reads it."""

    product: ProductSettings = ProductSettings()


def read_settings(options: argparse.Namespace) -> Settings:
    """Return the settings of a command: file and environment, and `--broker` over `kafka.broker`. Raises SettingsError."""
    settings = load_settings(Settings, options.config)
    chosen = getattr(options, "broker", None)
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"broker": chosen})}) if chosen else settings
