"""Which settings a process runs on: a record in the data folder with file, time, hash and values, secrets left out.

A process reads its settings once. The record lets `queryloop run` and `queryloop status` say when those that are read now differ.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from streams.runtime.atomic_files import replace_file
from streams.runtime.settings import MASK, RECORD, find_file

log = logging.getLogger(__name__)
Values = dict[str, dict[str, Any]]


class SettingsRecord(BaseModel, frozen=True):
    """What a process runs on. `values` are section, key, value as JSON; a secret that is set is asterisks there."""

    process: str
    pid: int
    file: str | None
    read_at: datetime
    hash: str
    values: Values


def plain_values(settings: BaseModel) -> Values:
    """Return settings as JSON values, paths made absolute, secrets as asterisks."""
    values: Values = json.loads(json.dumps(settings.model_dump(), default=_plain))
    return values


def _plain(value: object) -> str:
    if isinstance(value, SecretStr):
        return MASK
    return str(value.absolute()) if isinstance(value, Path) else str(value)


def hash_values(values: Values) -> str:
    """Return a short hash of settings: equal settings have equal ones."""
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def record_settings(
    process: str,
    settings: BaseModel,
    data_dir: Path,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
) -> SettingsRecord:
    """Write the record of this process to `run` in the data folder, and log it.

    A process that `queryloop up` started records what `up` itself has read, since it gets its settings as variables."""
    environ = os.environ if environ is None else environ
    given = _read(Path(environ[RECORD])) if environ.get(RECORD) else None
    if given is None:
        file, values = find_file(config, environ), plain_values(settings)
        read_at = datetime.fromtimestamp(clock(), UTC)
        given = SettingsRecord(
            process=process,
            pid=os.getpid(),
            file=None if file is None else str(file.absolute()),
            read_at=read_at,
            hash=hash_values(values),
            values=values,
        )
    record = given.model_copy(update={"process": process, "pid": os.getpid()})
    path = record_path(data_dir, process)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, record.model_dump_json(indent=1).encode(), durable=False)
    shown = record.file or "none"
    log.info("event=settings process=%s file=%s read_at=%s hash=%s", process, shown, record.read_at.isoformat(), record.hash)
    return record


def record_path(data_dir: Path, process: str) -> Path:
    """Return where the record of a process is."""
    return data_dir / "run" / f"settings-{process}.json"


def read_record(data_dir: Path, process: str) -> SettingsRecord | None:
    """Return the record of a process, None where there is none."""
    return _read(record_path(data_dir, process))


def read_records(data_dir: Path) -> list[SettingsRecord]:
    """Return the records of all processes that have run on this data folder."""
    found = (_read(path) for path in sorted((data_dir / "run").glob("settings-*.json")))
    return [record for record in found if record is not None]


def find_differences(record: SettingsRecord, settings: BaseModel) -> dict[str, tuple[Any, Any]]:
    """Return `section.key` -> (value of the record, value now) where they differ, in sections that both have; no secret."""
    now = plain_values(settings)
    return {
        key: (before, after)
        for section in record.values.keys() & now.keys()
        for key, before, after in _compare(section, record.values[section], now[section])
    }


def _compare(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _compare(f"{path}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield path, before, after


def _read(path: Path) -> SettingsRecord | None:
    try:
        return SettingsRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None  # none yet, or one of another version: only a comparison is left out
