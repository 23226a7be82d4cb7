"""The reference of all settings, generated from the code: `python -m queryloop.reference > docs/settings.md`.

The field descriptions of the sections are the only place where a setting is explained; a test keeps the page equal to them.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from queryloop.settings import Settings
from serving.policy.tasks import DEFAULT_TASKS, Task
from streams.runtime.allowed_values import describe_allowed

INTRODUCTION = """\
# Settings

Generated from the code by `python -m queryloop.reference > docs/settings.md`; a test keeps the two equal.

A value is taken from the first of these that has it: an environment variable `QUERYLOOP_<SECTION>_<KEY>`
(`QUERYLOOP_KAFKA_BOOTSTRAP` for `kafka.bootstrap`), the settings file, the default below. The file is `--config FILE`, else
`$QUERYLOOP_CONFIG`, else `queryloop.toml` in the working directory, where there is one. An empty variable counts as unset; a
list in a variable is written as JSON. `queryloop config` prints the effective values, secrets as asterisks. An unknown section,
key or variable and a value that is not allowed stop every command and process with exit code 2 and a line that names it.
"""
TASKS = """\
One table `[tasks.NAME]` for each kind of list. `{names}` exist already, and a table of the same name
changes only the keys that it gives. A new name is a new task and needs no code. As a variable: `QUERYLOOP_TASKS_<NAME>` with a
JSON object.
"""
HEAD = "| key | default | allowed | meaning |\n|---|---|---|---|"
LONG_DEFAULT = 60


def settings_page() -> str:
    """Return docs/settings.md."""
    return "\n".join([INTRODUCTION, *(part for name in Settings.model_fields for part in _section(name))])


def section_models() -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield each section's name and the model of its keys; that of `tasks` is one task's."""
    for name, field in Settings.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield name, field.annotation
        else:
            yield name, Task


def _section(name: str) -> Iterator[str]:
    model = dict(section_models())[name]
    yield f"## {name}\n"
    if model is Task:
        yield TASKS.format(names="`, `".join(DEFAULT_TASKS))
    else:
        yield inspect.getdoc(model) or ""
        yield ""
    yield HEAD
    for key, schema in _properties(model):
        cells = (f"`{key}`", _default(schema), describe_allowed(schema), schema.get("description", ""))
        yield "| " + " | ".join(_escape(cell) for cell in cells) + " |"
    yield ""


def _properties(model: type[BaseModel]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each key a person may write with its JSON Schema; a task's name is that of its table."""
    for key, schema in model.model_json_schema()["properties"].items():
        if (model, key) != (Task, "name"):
            yield key, schema


def _default(schema: Mapping[str, Any]) -> str:
    """Return a default as TOML writes it."""
    if schema["default"] is None:
        return "unset"
    text = json.dumps(schema["default"], ensure_ascii=False)
    return f"`{text}`" if len(text) <= LONG_DEFAULT else "a long text, see `queryloop config`"


def _escape(cell: str) -> str:
    """Return text that stays in its cell of a Markdown table."""
    return cell.replace("|", r"\|").replace("\n", " ")


if __name__ == "__main__":
    print(settings_page(), end="")
