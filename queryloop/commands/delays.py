"""`queryloop delays`: how long after its impression a click is made."""

from __future__ import annotations

import argparse

from queryloop.commands.counts import Answer, Table, show_counts
from queryloop.tables import cell


def run(options: argparse.Namespace) -> int:
    """Show the click delays as a histogram with percentiles. Raises SettingsError, CommandError."""
    return show_counts(options, "delays", Table({"upto_s": "up to [s]", "clicks": "clicks"}, "buckets", _summarise))


def _summarise(answer: Answer) -> str:
    parts = ", ".join(f"{name[:3]} {cell(answer[name])} s" for name in ("p50_s", "p90_s", "p99_s"))
    return f"{answer['clicks']} clicks: {parts}"
