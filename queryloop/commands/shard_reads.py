"""Reads one shard for a command: from the worker that holds it, or from its file when no worker does."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from queryloop.exits import CommandError, Exit
from streams.api.client import HttpError, WrongFolder, get
from streams.api.snapshot import Counts, dump_counts, read_counts
from streams.runtime.data_folder import DataFolder, find_data_folder
from streams.store.held_shards import shard_path
from streams.store.shard import Shard, StoreError
from streams.store.shard_registry import ShardRegistry

if TYPE_CHECKING:
    from pydantic import SecretStr

    from queryloop.settings import Settings

TIMEOUT_S = 300.0
RESTART_S = 20.0
POLL_S = 0.25

T = TypeVar("T")


def live_counts(settings: Settings, partition: int) -> Counts | None:
    """Return a shard's counts, None where there is no shard yet. Raises CommandError when neither worker nor file can be read."""
    dumped = ask_shard(settings, partition, "counts", dump_counts)
    return None if dumped is None else read_counts(dumped)


def ask_shard(settings: Settings, partition: int, what: str, read: Callable[[Shard], bytes]) -> bytes | None:
    """Return the answer of the shard's worker at /v1/shards/N/`what`, or of `read` on its file when no worker holds it.

    Waits for a worker that is being restarted, but not when it refuses. None where there is no shard. Raises CommandError.
    """
    registry, until = ShardRegistry(settings.data.dir), time.monotonic() + RESTART_S
    folder = find_data_folder(settings.data.dir)
    while True:
        holder = registry.find(partition)
        url = holder and f"{holder.url}/v1/shards/{partition}/{what}"
        found, why = _get(url, settings.worker.key, folder) if url else (None, "")
        if found is not None:
            return found
        if not shard_path(settings.data.dir, partition).exists():
            return None
        try:
            return _read_file(settings, partition, read)
        except StoreError as error:
            why = why or str(error)
        if time.monotonic() > until:
            raise CommandError(f"shard {partition}: neither its worker nor its file can be read: {why}", Exit.UNAVAILABLE)
        Event().wait(POLL_S)


def _read_file(settings: Settings, partition: int, read: Callable[[Shard], T]) -> T:
    rules = settings.rules
    shard = Shard.open(shard_path(settings.data.dir, partition), rules, read_only=True)
    try:
        return read(shard)
    finally:
        shard.close()


def _get(url: str, key: SecretStr | None, folder: DataFolder) -> tuple[bytes | None, str]:
    """Return the body, or None and the error. Raises CommandError for an error that will not pass."""
    try:
        return get(url, key, timeout_s=TIMEOUT_S, folder=folder), ""
    except WrongFolder as error:  # the record of the shard's worker is of before; its port is another stack's now
        return None, str(error)
    except HttpError as error:
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST):
            raise CommandError(str(error), Exit.UNAVAILABLE) from error
        return None, str(error)
