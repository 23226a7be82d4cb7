"""`queryloop successors`: which queries users typed after a query, over 14 days."""

from __future__ import annotations

import argparse

from queryloop.commands.counts import Answer, Table, show_counts


def run(options: argparse.Namespace) -> int:
    """Show the successors of a query, most frequent first. Raises SettingsError, CommandError."""
    columns = {"next_query": "next query", "count": "count", "share": "share"}
    return show_counts(options, "successors", Table(columns, "rows", _summarise, texts=("next_query",)))


def _summarise(answer: Answer) -> str:
    return f"followed {answer['followed']} times by {answer['total']} queries in the 14 days before {answer['as_of']}"
