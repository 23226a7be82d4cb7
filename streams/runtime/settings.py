"""The settings loader, and the one section that every room reads.

Each section is a frozen pydantic model in the file of the code that reads it. This file fills them from a TOML file and the
environment, and turns every mistake into one sentence that names the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, SecretBytes, SecretStr, ValidationError, create_model
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from streams.runtime.validation_errors import explain_error

PREFIX = "QUERYLOOP_"
CONFIG = "QUERYLOOP_CONFIG"
ENVIRONMENT_ONLY = "environment_only"
"""The key of a field's `json_schema_extra` that keeps a secret out of settings files."""
RECORD = "QUERYLOOP_SETTINGS_RECORD"
"""Variable with the path of the record of what the starting process has read (`streams.runtime.settings_records`)."""
DEFAULT_FILE = Path("queryloop.toml")
MASK = "**********"
MAX_NUMBER = 2**53
"""Where whole numbers end that a float, JSON and the readers of both have exactly."""
MAX_SHOWN = 200
"""Characters of a wrong value that a message shows."""
SECTIONS = (
    "data",
    "kafka",
    "events",
    "worker",
    "counting",
    "lake",
    "emitter",
    "index",
    "serving",
    "tasks",
    "predictor",
    "policy",
    "cold_start",
    "sft",
    "ctr",
    "search",
    "dpo",
    "gate",
    "prune",
    "timetable",
    "product",
)
"""Every section of every room: a process that reads only some of them skips the others and refuses any other name."""

Root = TypeVar("Root", bound=BaseModel)


class SettingsError(ValueError):
    """Settings that cannot be used; the text names each key at fault, its value and what is allowed."""


class DataSettings(BaseModel, frozen=True, extra="forbid"):
    """Where all data is on disk (section `data`)."""

    dir: Path = Field(default=Path("data"), description="folder of shards, lake, artifacts, releases, ledger and logs")


class _Environment(EnvSettingsSource):
    """pydantic-settings' environment source over a given mapping instead of the process's own environment."""

    def __init__(self, settings_class: type[BaseSettings], environ: Mapping[str, str]) -> None:
        self._environ = environ
        super().__init__(settings_class)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in self._environ.items() if value != ""}


def load_settings(root: type[Root], path: Path | None = None, environ: Mapping[str, str] | None = None) -> Root:
    """Return `root` filled from its defaults, the file, then QUERYLOOP_<SECTION>_<KEY> variables (an empty one counts as unset).

    The file is `path`, else $QUERYLOOP_CONFIG, else ./queryloop.toml if it is there. Raises SettingsError.
    """
    environ = os.environ if environ is None else environ
    named = _named_file(path, environ)
    written = _read_file(named or DEFAULT_FILE, required=named is not None)
    _refuse_unknown_sections(written, str(named or DEFAULT_FILE))
    _refuse_unknown_variables(environ)
    exported = _read_environment(root, environ)
    own = {section: value for section, value in written.items() if section in root.model_fields}
    file = str(named or DEFAULT_FILE)
    _refuse_secrets(root, own, file)
    merged = _merge(own, exported)
    unusable = dict(find_unusable(merged))
    problems: list[str] = []
    try:
        settings = root.model_validate(merged)
        unusable |= dict(find_unusable(settings.model_dump()))
    except ValidationError as error:
        others = (dict(one) for one in error.errors(include_url=False) if tuple(map(str, one["loc"][:2])) not in unusable)
        problems = [_problem(root, one, exported, file) for one in others]
    problems += [f"{_origin(path, exported, file)}: {'.'.join(path)}{text}" for path, text in unusable.items()]
    if problems:
        raise SettingsError("\n".join(problems))
    return settings


def find_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """Return the settings file that `load_settings` reads, None where there is none."""
    named = _named_file(path, environ)
    return named or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)


def _named_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    return path or (Path(environ[CONFIG]) if environ.get(CONFIG) else None)


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def _read_environment(root: type[BaseModel], environ: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in root.model_fields.items()}
    source = create_model("Environment", __base__=_Prefixed, **fields)
    try:
        return _Environment(source, environ)()
    except SourceError:
        names = [name for name in environ if name.upper().startswith(PREFIX) and not _is_readable(source, {name: environ[name]})]
        raise SettingsError(f"environment variable {', '.join(names)}: a list or a table is written as JSON there") from None


def _is_readable(source: type[BaseSettings], environ: Mapping[str, str]) -> bool:
    try:
        _Environment(source, environ)()
    except SourceError:
        return False
    return True


class _Prefixed(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="_", env_nested_max_split=1, extra="ignore")


def _refuse_unknown_sections(written: Mapping[str, Any], file: str) -> None:
    for section, value in written.items():
        if section not in SECTIONS:
            raise SettingsError(
                f"{file}: unknown section [{section}]{_nearest(section, SECTIONS)}; sections are {', '.join(SECTIONS)}"
            )
        if not isinstance(value, dict):
            raise SettingsError(f"{file}: {section} = {value!r} must be a section: [{section}] with keys under it")


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    for name in environ:
        if not name.upper().startswith(PREFIX) or name.upper() in (CONFIG, RECORD):
            continue
        section, _, key = name[len(PREFIX) :].lower().partition("_")
        if section in SECTIONS and not key:
            raise SettingsError(f"environment variable {name}: names the section {section} but no key: {name}_<KEY>")
        if section not in SECTIONS:
            raise SettingsError(
                f"environment variable {name}: no section {section!r}{_nearest(section, SECTIONS)}; "
                f"variables are {PREFIX}<SECTION>_<KEY> with a section of {', '.join(SECTIONS)}"
            )


def _refuse_secrets(root: type[BaseModel], written: Mapping[str, Mapping[str, Any]], file: str) -> None:
    """Raise SettingsError for a secret in a file whose field is marked as ENVIRONMENT_ONLY; the text does not show it."""
    for section, values in written.items():
        model = root.model_fields[section].annotation
        fields = getattr(model, "model_fields", {})
        for key in values:
            marks = fields[key].json_schema_extra if key in fields else None
            if isinstance(marks, dict) and marks.get(ENVIRONMENT_ONLY):
                raise SettingsError(
                    f"{file}: {section}.{key} is a secret, which a settings file may not hold: remove it there and set the "
                    f"environment variable {PREFIX}{section.upper()}_{key.upper()}"
                )


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _problem(root: type[BaseModel], error: Mapping[str, Any], exported: Mapping[str, Any], file: str) -> str:
    key_path = tuple(str(part) for part in error["loc"])
    key = ".".join(key_path)
    origin = _origin(key_path, exported, file)
    if error["type"] == "extra_forbidden":
        known = _keys(root, key_path[:-1])
        return f"{origin}: unknown key {key}{_nearest(key_path[-1], known)}; allowed are {', '.join(known) or 'none'}"
    text = explain_error(error, root)
    if len(key_path) < 2:
        about = "" if not key or text.startswith(f"{key}.") else f"{key}: "
        return f"{', '.join([file, *_variables_in(text, exported)])}: {about}{text}"
    if error["type"] == "missing" or isinstance(error["input"], Mapping | BaseModel):
        return f"{origin}: {key}: {text}"  # a whole table is not shown: it may hold a secret
    value = MASK if _is_secret(root, key_path) else _shorten(repr(error["input"]))
    return f"{origin}: {key} = {value}: {text}"


def _origin(key_path: tuple[str, ...], exported: Mapping[str, Any], file: str) -> str:
    """Return where a wrong value was given: the variable of its key, else the file."""
    return f"environment variable {PREFIX}{'_'.join(key_path[:2]).upper()}" if _has_path(exported, key_path[:2]) else file


def _variables_in(text: str, exported: Mapping[str, Any]) -> list[str]:
    """Return the variables whose keys a text about several settings names."""
    given = [(section, key) for section, keys in exported.items() if isinstance(keys, Mapping) for key in keys]
    return [f"{PREFIX}{section}_{key}".upper() for section, key in given if f"{section}.{key}" in text]


def find_unusable(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield path and fault of each value that no setting can have, whatever its kind."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from find_unusable(value, (*path, str(key)))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from find_unusable(value, path)
    elif tree == "":
        yield path, " is empty: remove the line to have the default"
    elif isinstance(tree, str) and "\x00" in tree:
        yield path, " has a NUL character, which no setting can have"
    elif isinstance(tree, int | float) and not abs(tree) < MAX_NUMBER:
        yield path, f" = {_shorten(str(tree))}: must be a finite number under 2^53"


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _has_path(tree: Any, key_path: Iterable[str]) -> bool:
    for part in key_path:
        if not isinstance(tree, Mapping) or part not in tree:
            return False
        tree = tree[part]
    return True


def _models(annotation: Any) -> Iterator[Any]:
    """Yield the types inside an annotation such as `dict[str, Task]` or `SecretStr | None`."""
    inner = getattr(annotation, "__args__", None)
    if not inner:
        yield annotation
        return
    for part in inner:
        yield from _models(part)


def _annotation(root: type[BaseModel], key_path: Iterable[str]) -> list[Any]:
    """Return the types at a path in the tree of models; a part that is no model's field (a key of a table) is skipped."""
    types: list[Any] = [root]
    for part in key_path:
        models = [one for one in types if isinstance(one, type) and issubclass(one, BaseModel)]
        if fields := [one.model_fields[part] for one in models if part in one.model_fields]:
            types = [kind for field in fields for kind in _models(field.annotation)]
    return types


def _keys(root: type[BaseModel], key_path: Iterable[str]) -> list[str]:
    found = _annotation(root, key_path)
    return [key for one in found if isinstance(one, type) and issubclass(one, BaseModel) for key in one.model_fields]


def _is_secret(root: type[BaseModel], key_path: Iterable[str]) -> bool:
    return any(kind in (SecretStr, SecretBytes) for kind in _annotation(root, key_path))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def is_loopback(host: str) -> bool:
    """Return whether an address or name is reachable from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
