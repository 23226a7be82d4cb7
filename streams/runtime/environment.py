"""Settings as environment variables: how processes started here get exactly the settings of the one that starts them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from streams.runtime.settings import CONFIG, PREFIX


def environ_of(settings: BaseModel, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which `load_settings` answers these settings again, whatever file or variable there is.

    Raises ValueError for a value that no variable can say: None or an empty text where that is not the default."""
    given = os.environ if environ is None else environ
    bare = {name: value for name, value in given.items() if not name.upper().startswith(PREFIX)}
    changed: dict[str, dict[str, Any]] = settings.model_dump(exclude_defaults=True)
    spoken = {
        f"{PREFIX}{section}_{key}".upper() if section != "tasks" else f"{PREFIX}TASKS_{key}": _speak(f"{section}.{key}", value)
        for section, values in changed.items()
        for key, value in values.items()
    }
    return {**bare, **spoken, CONFIG: os.devnull}


def _speak(key: str, value: Any) -> str:
    if value is None or value == "":
        raise ValueError(f"{key} = {value!r} cannot be handed to a process as an environment variable; leave it at its default")
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value, default=str)
