"""The workers as the commands meet them: each shard's counts from the worker that holds it, or from its file when nobody does."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from queryloop.exits import CommandError, Exit
from streams.api.snapshot import Counts, dump_counts, read_counts
from streams.store.held_shards import shard_path
from streams.store.shard import Shard, StoreError
from streams.store.shard_registry import ShardHolder, ShardRegistry

if TYPE_CHECKING:
    from pydantic import SecretStr

    from queryloop.settings import Settings

TIMEOUT_S = 300.0
PATIENCE_S = 20.0
POLL_S = 0.25
NOBODY = ShardHolder("", "", 0)

T = TypeVar("T")


def live_counts(settings: Settings, partition: int) -> Counts | None:
    """Return what a shard has counted, None where there is no shard yet. Raises CommandError when nobody can say."""
    dumped = ask_shard(settings, partition, f"/v1/shards/{partition}/counts", dump_counts)
    return None if dumped is None else read_counts(dumped)


def ask_shard(settings: Settings, partition: int, path: str, read: Callable[[Shard], bytes]) -> bytes | None:
    """Return what the shard's worker answers at `path`, or what `read` finds in its file when no worker holds it.

    Waits for a worker that is being started again; a worker's "no" is final. None where there is no shard. Raises CommandError.
    """
    registry, until = ShardRegistry(settings.data.dir, NOBODY), time.monotonic() + PATIENCE_S
    while True:
        holder = registry.find(partition)
        found, why = (None, "") if holder is None else _get(holder.url + path, settings.worker.key)
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
    rules = settings.worker.rules(settings.events)
    shard = Shard.open(shard_path(settings.data.dir, partition), rules, read_only=True)
    try:
        return read(shard)
    finally:
        shard.close()


def _get(url: str, key: SecretStr | None) -> tuple[bytes | None, str]:
    """Return the body, or None and why there is none. Raises CommandError for an answer that will not change."""
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
            return answer.read(), ""
    except urllib.error.HTTPError as error:
        why = f"{url}: HTTP {error.code}: {error.read(300).decode('utf-8', 'replace')}"
        if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST):
            raise CommandError(why, Exit.UNAVAILABLE) from error
        return None, why
    except OSError as error:
        return None, f"{url}: {getattr(error, 'reason', error)}"
