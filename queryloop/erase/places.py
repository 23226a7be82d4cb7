"""Where `queryloop erase` removes rows: shards (by their workers, or from their files), the lake, and outboxes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import date
from http import HTTPStatus
from pathlib import Path
from threading import Event
from typing import Any

import msgspec

from queryloop.exits import CommandError, Exit
from queryloop.settings import Settings
from streams.api.client import HttpError, post
from streams.api.erasures import ErasureRequest, describe_erased
from streams.counting import retention
from streams.emitter.erasure import ErasedLines, erase_from_outboxes, find_outboxes
from streams.events.erasures import Subject
from streams.lake.erasure import ErasedFiles, erase_from_lake
from streams.store.held_shards import shard_path
from streams.store.lake_export import export_day
from streams.store.shard import Shard, StoreError
from streams.store.shard_registry import ShardRegistry

TIMEOUT_S = 600.0
RESTART_S = 20.0
POLL_S = 0.25

ErasedShard = dict[str, Any]
"""What was erased from a shard: `rows` by table and `days` (YYYY-MM-DD) that changed."""
NOTHING: ErasedShard = {"rows": {}, "days": []}


def erase_from_shards(settings: Settings, subject: Subject, dry_run: bool) -> Iterator[tuple[int, ErasedShard]]:
    """Erase a subject from each shard and yield it with what was there. Raises CommandError."""
    for partition in find_partitions(settings):
        yield partition, _erase_from_shard(settings, partition, subject, dry_run)


def find_partitions(settings: Settings) -> list[int]:
    """Return all partitions, and those of shards that are left of more partitions."""
    names = [path.stem.removeprefix("events-") for path in shard_path(settings.data.dir, 0).parent.glob("events-*.duckdb")]
    return sorted({*range(settings.kafka.partitions), *(int(name) for name in names if name.isdecimal())})


def _erase_from_shard(settings: Settings, partition: int, subject: Subject, dry_run: bool) -> ErasedShard:
    """Ask the shard's worker to erase, or erase from its file when no worker holds it; wait for one that is being restarted."""
    registry, until = ShardRegistry(settings.data.dir), time.monotonic() + RESTART_S
    while True:
        holder = registry.find(partition)
        found, why = (None, "") if holder is None else _ask_worker(settings, holder.url, partition, subject, dry_run)
        if found is not None:
            return found
        if not shard_path(settings.data.dir, partition).exists():
            return NOTHING
        try:
            return _erase_from_file(settings, partition, subject, dry_run)
        except StoreError as error:
            why = why or str(error)
        if time.monotonic() > until:
            raise CommandError(
                f"shard {partition}: neither its worker nor its file can be used: {why}; run the command again", Exit.UNAVAILABLE
            )
        Event().wait(POLL_S)


def _ask_worker(settings: Settings, url: str, partition: int, subject: Subject, dry_run: bool) -> tuple[ErasedShard | None, str]:
    """Return the worker's answer, or None and the error. Raises CommandError for an error that will not pass."""
    body = msgspec.json.encode(ErasureRequest(subject.kind, subject.id, subject.until_us, dry_run))
    try:
        answer: ErasedShard = json.loads(post(f"{url}/v1/shards/{partition}/erase", settings.worker.key, TIMEOUT_S, body=body))
    except HttpError as error:
        if error.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.BAD_REQUEST):
            raise CommandError(str(error), Exit.UNAVAILABLE) from error
        return None, str(error)
    return answer, ""


def _erase_from_file(settings: Settings, partition: int, subject: Subject, dry_run: bool) -> ErasedShard:
    shard = Shard.open(shard_path(settings.data.dir, partition), settings.rules)
    try:
        erased = shard.erase(subject, dry_run)
        if not dry_run:
            _export_again(settings, shard, partition)
        return describe_erased(erased)
    finally:
        shard.close()


def _export_again(settings: Settings, shard: Shard, partition: int) -> None:
    """Write the days that are in the lake and have changed since; a worker does this by itself."""
    with shard.reader() as con:
        changed: list[date] = sorted({*retention.read_dirty(con)} & {*retention.read_exported(con)})
    for day in changed:
        with shard.reader() as con:
            con.execute("BEGIN TRANSACTION READ ONLY")
            export_day(con, settings.open_lake(), partition, day)
        shard.mark_exported(day)


def erase_lake(settings: Settings, subject: Subject, progress: Callable[[int, int], None], dry_run: bool) -> ErasedFiles:
    """Erase a subject from the lake. Raises CommandError when it cannot be reached."""
    lake = settings.open_lake()
    try:
        return erase_from_lake(lake, subject, settings.rules, progress, dry_run)
    except OSError as error:
        raise CommandError(f"the lake {lake.url}: {error}; run the command again", Exit.UNAVAILABLE) from error


def erase_outboxes(settings: Settings, subject: Subject, others: list[Path], dry_run: bool) -> ErasedLines:
    """Erase a subject from the outboxes in the data folder, in emitter.outbox_dir and in `others`."""
    configured = [settings.emitter.outbox_dir] if settings.emitter.outbox_dir else []
    roots = [settings.data.dir / "outbox", *configured, *others]
    return erase_from_outboxes(sorted({folder for root in roots for folder in find_outboxes(root)}), subject, dry_run)
