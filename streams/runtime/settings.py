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

PREFIX = "QUERYLOOP_"
CONFIG = "QUERYLOOP_CONFIG"
DEFAULT_FILE = Path("queryloop.toml")
SECTIONS = (
    "data",
    "kafka",
    "events",
    "worker",
    "lake",
    "emitter",
    "index",
    "serving",
    "tasks",
    "predictor",
    "policy",
    "sft",
    "ctr",
    "search",
    "dpo",
    "gate",
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
    named = path or (Path(environ[CONFIG]) if environ.get(CONFIG) else None)
    written = _read_file(named or DEFAULT_FILE, required=named is not None)
    _refuse_unknown_sections(written, str(named or DEFAULT_FILE))
    _refuse_unknown_variables(environ)
    exported = _read_environment(root, environ)
    own = {section: value for section, value in written.items() if section in root.model_fields}
    try:
        return root.model_validate(_merge(own, exported))
    except ValidationError as error:
        problems = [_problem(root, dict(one), exported, str(named or DEFAULT_FILE)) for one in error.errors(include_url=False)]
        raise SettingsError("\n".join(problems)) from None


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    if not required and not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def _read_environment(root: type[BaseModel], environ: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in root.model_fields.items()}
    source = create_model("Environment", __base__=_Prefixed, **fields)
    try:
        return _Environment(source, environ)()
    except SourceError as error:
        raise SettingsError(f"environment: {error}; a table or a list is given as JSON") from error


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
        if not name.upper().startswith(PREFIX) or name.upper() == CONFIG:
            continue
        section, _, key = name[len(PREFIX) :].lower().partition("_")
        if section in SECTIONS and not key:
            raise SettingsError(f"environment variable {name}: names the section {section} but no key: {name}_<KEY>")
        if section not in SECTIONS:
            raise SettingsError(
                f"environment variable {name}: no section {section!r}{_nearest(section, SECTIONS)}; "
                f"variables are {PREFIX}<SECTION>_<KEY> with a section of {', '.join(SECTIONS)}"
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
    origin = f"environment variable {PREFIX}{'_'.join(key_path[:2]).upper()}" if _has_path(exported, key_path[:2]) else file
    if error["type"] == "extra_forbidden":
        known = _keys(root, key_path[:-1])
        return f"{origin}: unknown key {key}{_nearest(key_path[-1], known)}; allowed are {', '.join(known) or 'none'}"
    if error["type"] == "missing":
        return f"{key}: a value is needed, in {file} or as {PREFIX}{'_'.join(key_path[:2]).upper()}"
    if isinstance(error["input"], Mapping | BaseModel):
        return f"{origin}: {key}: {error['msg']}"  # a whole section is not shown: it may hold a secret
    value = "**********" if _is_secret(root, key_path) else repr(error["input"])
    return f"{origin}: {key} = {value}: {error['msg']}"


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
