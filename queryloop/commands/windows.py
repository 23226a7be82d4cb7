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
    said = f"{answer['total']} cells in the 14 days before {answer['as_of']}; {_describe_caps(answer['left_out'])}"
    unknown = any(row["coec"] is None for row in answer["rows"])
    return f"{said}; COEC – where its positions have too few impressions or clicks yet (docs/events.md)" if unknown else said


def _describe_caps(left_out: Answer) -> str:
    caps = [f"counting.{name} {left_out[name]}" for name in ("session_cap", "user_cap") if left_out[name]]
    if not caps:
        return "no cap: all of a session's lists count (counting.session_cap is 0, off)"
    return f"left out by {' and '.join(caps)}: {left_out['impressions']} impressions, {left_out['clicks']} clicks"
