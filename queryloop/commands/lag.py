"""`queryloop lag`: how far each shard's counts are behind the end of its partition."""

from __future__ import annotations

import argparse

from queryloop.commands.counts import Answer, Table, show_counts
from queryloop.tables import cell

COLUMNS = {
    "shard": "shard",
    "next_offset": "counted to",
    "end_offset": "log end",
    "records": "records",
    "events": "events",
    "seconds": "behind [s]",
    "event_time_seconds": "last event [s ago]",
}


def run(options: argparse.Namespace) -> int:
    """Show the lag of every shard. Raises SettingsError, CommandError."""
    return show_counts(options, "lag", Table(COLUMNS, "shards", _summarise, convert=list_shards))


def list_shards(answer: Answer) -> Answer:
    """Return the worker's answer with its shards as a list, by number."""
    shards = sorted(answer["shards"].items(), key=lambda one: int(one[0]))
    return {**answer, "shards": [{"shard": int(number), **lag} for number, lag in shards]}


def _summarise(answer: Answer) -> str:
    said = f"behind the log by {cell(answer['records'])} records, {cell(answer['seconds'])} seconds"
    waiting = answer.get("open_transaction_records")
    return f"{said}; {waiting} more wait for the end of an open transaction" if waiting else said
