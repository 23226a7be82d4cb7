"""What `queryloop replay` prints for people: printable characters only, whatever is in the log."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.events.schema import printable
from streams.importers.preview import Preview

NOTHING = "no line to send: the log is empty, has no row below its header, or the mapping answered no row"
NO_TYPE = re.compile("missing required fields? `type`")
FOREIGN = (
    "no line is an event, and the first ones have no `type`: say with --mapping FILE which field is which (docs/mappings.md)"
)


def describe_preview(name: str, found: Preview, mapped: bool) -> str:
    """Return the result of a check."""
    types = ", ".join(f"{kind} {number:,}" for kind, number in found.types.items()) or "none"
    lines = [f"{name}: {found.lines:,} lines; events: {types}; to quarantine: {_reasons(found.reasons)}"]
    if found.first_ts is not None and found.last_ts is not None:
        lines.append(f"from {shown_time(found.first_ts)} to {shown_time(found.last_ts)}")
    lines += ["first lines:", *(f"  {printable(line)}" for line in found.first_lines)] if found.lines else [NOTHING]
    return "\n".join([*lines, *describe_refused(found, mapped)])


def describe_refused(found: Preview, mapped: bool) -> list[str]:
    """Return lines that name the first lines to be refused, and whether a mapping may be missing."""
    if not found.first_refused:
        return []
    lines = ["first to be refused:"]
    lines += [f"  {printable(str(one.place))}: {one.reason}: {one.detail}" for one in found.first_refused]
    foreign = not mapped and not found.types and all(NO_TYPE.search(one.detail) for one in found.first_refused)
    return [*lines, FOREIGN] if foreign else lines


def describe_isolated(summary: Mapping[str, Any], out: Path, mapped: bool) -> str:
    """Return the summary of an isolated replay."""
    lines = [
        f"{summary['log']}: {summary['lines']:,} lines on {summary['broker']} in {summary['seconds']:.1f} s",
        f"counted {summary['counted']:,}, duplicates {summary['duplicates']:,}, quarantined: {_reasons(summary['quarantined'])}",
        f"tables in {out}/",
        *([] if summary["lines"] else [NOTHING]),
    ]
    if summary["lines"] and not summary["counted"] and not mapped:
        lines.append("no line counted: quarantine.csv says why; a log of another system needs --mapping FILE (docs/mappings.md)")
    if empty := [day for day, rows in summary["rows"].items() if not rows["windows"]]:
        latest = summary["latest_ts"]
        last = "the log has no readable event" if latest is None else f"the log's latest event is of {shown_time(latest)}"
        lines.append(f"no windows as of {', '.join(empty)}: no impression of the 14 days before counts; {last}")
    return "\n".join(lines)


def describe_delivery(summary: Mapping[str, Any]) -> str:
    """Return the summary of a replay to a running broker, with what became of the events where a worker answers."""
    lines = [f"{summary['log']}: {summary['delivered']:,} events delivered to {summary['bootstrap']}"]
    if not summary["delivered"]:
        return f"{lines[0]}\n{NOTHING}"
    if (outcome := summary["outcome"]) is None:
        return f"{lines[0]}\nwhat became of them is not known: {summary['unknown']}"
    numbers = ", ".join(f"{name} {outcome[name]:,}" for name in ("counted", "duplicates", "pending"))
    lines.append(f"meanwhile the worker {numbers}, quarantined: {_reasons(outcome['quarantined'])}")
    if outcome["quarantined"]:
        lines.append("`queryloop quarantine list` shows them, `queryloop quarantine drop` removes them for good")
    if not outcome["applied"]:
        lines.append("the worker has not applied all of them yet: `queryloop lag` says how far it is")
    return "\n".join(lines)


def shown_time(ts: float) -> str:
    """Return a time in seconds since the epoch as people read it."""
    return datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _reasons(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in numbers.items()) or "none"
