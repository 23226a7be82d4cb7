"""`queryloop windows`: impressions, clicks and click rates of each (query, item, position) over 14 days."""

from __future__ import annotations

import argparse

from queryloop.commands.counts import Answer, Table, show_counts


def run(options: argparse.Namespace) -> int:
    """Show the windows of a query, an item or both. Raises SettingsError, CommandError."""
    columns = ("query", "item", "position", "impressions", "clicks", "raw_ctr", "smoothed_ctr", "coec")
    return show_counts(options, "windows", Table(columns, lambda answer: answer["rows"], _summarise))


def _summarise(answer: Answer) -> str:
    return f"{answer['total']} cells in the 14 days before {answer['as_of']}"
