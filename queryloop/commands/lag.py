"""`queryloop lag`: how far each shard's counts are behind the end of its partition."""

from __future__ import annotations

import argparse

from queryloop.commands.counts import Answer, Table, cell, show_counts


def run(options: argparse.Namespace) -> int:
    """Show the lag of every shard. Raises SettingsError, CommandError."""
    columns = ("shard", "next_offset", "end_offset", "records", "events", "seconds", "event_time_seconds")
    return show_counts(options, "lag", Table(columns, _rows, _summarise))


def _rows(answer: Answer) -> list[Answer]:
    return [{"shard": shard, **lag} for shard, lag in answer["shards"].items()]


def _summarise(answer: Answer) -> str:
    said = f"behind by {cell(answer['records'])} records, {cell(answer['seconds'])} seconds"
    waiting = answer.get("open_transaction_records")
    return f"{said}; {waiting} more wait for the end of an open transaction" if waiting else said
