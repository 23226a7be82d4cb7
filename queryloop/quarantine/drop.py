"""`queryloop quarantine drop`: the original bytes of quarantined events are removed for good, and who did it is recorded."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING

from queryloop.exits import CommandError, Exit
from queryloop.output import print_answer
from streams.api.client import HttpError, post, with_query
from streams.api.quarantine_drop import DropParams, drop_rows
from streams.runtime.audit import name_user
from streams.store.held_shards import shard_path
from streams.store.shard import Shard, StoreError
from streams.store.shard_registry import ShardRegistry

if TYPE_CHECKING:
    from queryloop.settings import Settings

TIMEOUT_S = 300.0


def drop(settings: Settings, options: argparse.Namespace, fetch_counts: Callable[[int], dict[str, int] | None]) -> int:
    """Drop the rows of a reason in every shard; without `--yes` say how many there are and drop none. Raises CommandError."""
    if not options.yes:
        found = [fetch_counts(partition) or {} for partition in range(settings.kafka.partitions)]
        number = sum(counts.get(options.reason, 0) for counts in found)
        older = f", those before {options.before} of them," if options.before else ""
        raise CommandError(f"{number:,} rows have the reason {options.reason}{older}: --yes removes them for good", Exit.USAGE)
    by = name_user()
    params = DropParams(reason=options.reason, before=options.before, by=by)
    dropped = {number: _drop(settings, number, params) for number in range(settings.kafka.partitions)}
    total = sum(dropped.values())
    if options.json:
        shards = [{"shard": number, "dropped": rows} for number, rows in dropped.items()]
        print_answer({"reason": options.reason, "before": options.before, "by": by, "dropped": total, "shards": shards})
    else:
        print(f"{total:,} rows of the reason {options.reason} dropped; recorded in {settings.data.dir / 'audit.jsonl'}")
    return Exit.DONE


def _drop(settings: Settings, partition: int, params: DropParams) -> int:
    """Drop a shard's rows by the worker that holds it, or in its file where no worker does."""
    if (holder := ShardRegistry(settings.data.dir).find(partition)) is not None:
        url = f"{holder.url}/v1/shards/{partition}/quarantine/drop"
        try:
            answer = post(with_query(url, params.model_dump(mode="json", exclude_none=True)), settings.worker.key, TIMEOUT_S)
            return int(json.loads(answer)["dropped"])
        except HttpError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise CommandError(f"shard {partition}: {error}", Exit.UNAVAILABLE) from error
    if not shard_path(settings.data.dir, partition).exists():
        return 0
    return _drop_in_file(settings, partition, partial(drop_rows, data_dir=settings.data.dir, partition=partition, params=params))


def _drop_in_file(settings: Settings, partition: int, change: Callable[[Shard], int]) -> int:
    try:
        shard = Shard.open(shard_path(settings.data.dir, partition), settings.rules)
    except StoreError as error:
        raise CommandError(f"shard {partition}: {error}", Exit.UNAVAILABLE) from error
    try:
        return change(shard)
    finally:
        shard.close()
