"""Settings as environment variables, by which a child process gets exactly the settings of its parent."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from streams.runtime.settings import CONFIG, PREFIX


def to_environ(settings: BaseModel, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment in which `load_settings` returns these settings, whatever file or variable there is.

    Raises ValueError for a value that no variable can express: None or an empty text where that is not the default.
    """
    given = os.environ if environ is None else environ
    others = {name: value for name, value in given.items() if not name.upper().startswith(PREFIX)}
    changed: dict[str, dict[str, Any]] = settings.model_dump(exclude_defaults=True)
    variables = {
        f"{PREFIX}{section}_{key}".upper() if section != "tasks" else f"{PREFIX}TASKS_{key}": _to_text(f"{section}.{key}", value)
        for section, values in changed.items()
        for key, value in values.items()
    }
    return {**others, **variables, CONFIG: os.devnull}


def _to_text(key: str, value: Any) -> str:
    if value is None or value == "":
        raise ValueError(f"{key} = {value!r} cannot be passed to a process as an environment variable; leave it at its default")
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value, default=str)
