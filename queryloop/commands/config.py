"""`queryloop config`: the effective settings as TOML or JSON, secrets masked."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pydantic import BaseModel, SecretStr

from queryloop.exits import Exit
from queryloop.output import print_answer
from queryloop.settings import check_places, read_settings

MASK = "**********"


def run(options: argparse.Namespace) -> int:
    """Print the settings. Raises SettingsError, also for one that names what is not on this machine."""
    settings = read_settings(options)
    check_places(settings)
    tables = masked(settings)
    if options.json:
        print_answer(tables)
    else:
        print(to_toml(tables), end="")
    return Exit.DONE


def masked(settings: BaseModel) -> dict[str, Any]:
    """Return the settings as plain JSON values, every secret that is set as asterisks."""
    dumped: dict[str, Any] = json.loads(json.dumps(settings.model_dump(), default=_plain))
    return dumped


def _plain(value: object) -> str:
    return MASK if isinstance(value, SecretStr) else str(value)


def to_toml(tables: dict[str, Any]) -> str:
    """Return sections as TOML; an unset value is a comment, since TOML has none."""
    return "\n".join(line for name, table in tables.items() for line in (*_table(name, table), "")).rstrip() + "\n"


def _table(name: str, table: dict[str, Any]) -> list[str]:
    own = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{name}]"] if own or not table else []
    lines += [f"# {key} is unset" if value is None else f"{key} = {_value(value)}" for key, value in own.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [*([""] if lines else []), *_table(f"{name}.{key}", value)]
    return lines


def _value(value: Any) -> str:
    """Return a scalar or a list as TOML writes it; JSON's strings, numbers and arrays are TOML's too."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
