"""`queryloop windows`: impressions, clicks and click rates of each (query, item, position) over 14 days."""

from __future__ import annotations

import argparse

from queryloop.commands.counts import Answer, Table, show_counts
from queryloop.exits import CommandError, Exit

COLUMNS = {
    "query": "query",
    "item": "item",
    "position": "position",
    "impressions": "shown",
    "clicks": "clicks",
    "raw_ctr": "raw CTR",
    "smoothed_ctr": "smoothed",
    "coec": "COEC",
}


def run(options: argparse.Namespace) -> int:
    """Show the windows of a query, an item or both. Raises SettingsError, CommandError."""
    if options.query is None and options.item is None:
        raise CommandError('say which windows: --query "red shoes", --item "red boots", or both', Exit.USAGE)
    return show_counts(options, "windows", Table(COLUMNS, "rows", _summarise, texts=("query", "item")))


def _summarise(answer: Answer) -> str:
    said = f"{answer['total']} cells in the 14 days before {answer['as_of']}"
    unknown = any(row["coec"] is None for row in answer["rows"])
    return f"{said}; COEC – where its positions have too few impressions or clicks yet (docs/events.md)" if unknown else said
