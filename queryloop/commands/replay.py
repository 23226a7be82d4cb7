"""`queryloop replay`: sends a log to a running or an isolated broker and prints the summary, or checks it (`--check`)."""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from queryloop.commands.status import read_running
from queryloop.exits import CommandError, Exit
from queryloop.replay.replay import Pacing, replay, replay_isolated
from queryloop.settings import Settings, read_settings
from streams.events.schema import printable
from streams.importers.mapping import Mapping, read_mapping
from streams.importers.preview import Preview, preview
from streams.worker.settings import StreamsSettings

NOTHING = "no line to send: the log is empty, has no row below its header, or the mapping answered no row"
NO_TYPE = re.compile("missing required fields? `type`")
FOREIGN = (
    "no line is an event, and the first ones have no `type`: say with --mapping FILE which field is which (docs/mappings.md)"
)


def run(options: argparse.Namespace) -> int:
    """Replay or check a log and print the summary. Raises CommandError for options that do not go together."""
    settings = read_settings(options)
    if options.check:
        return _check(options, settings)
    summary = _isolated(options, settings) if options.isolated else _running(options, settings)
    print(json.dumps(summary, indent=2, default=str) if options.json else _describe(summary, options.out))
    return Exit.DONE


def _check(options: argparse.Namespace, settings: Settings) -> Exit:
    """Print what would be sent; return FAILED when a line would be refused."""
    if options.isolated or options.out is not None or options.as_of or options.speed is not None:
        raise CommandError("--check sends nothing: it goes with --mapping and --json alone", Exit.USAGE)
    found = preview(options.log, time.time(), _mapping(options), settings.events)
    if options.json:
        print(json.dumps(asdict(found), indent=2))
    else:
        print(_describe_preview(options.log.name, found, mapped=options.mapping is not None))
    return Exit.FAILED if found.reasons else Exit.DONE


def _mapping(options: argparse.Namespace) -> Mapping | None:
    return None if options.mapping is None else read_mapping(options.mapping)


def _isolated(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    if options.speed is not None:
        raise CommandError("--speed goes with a replay to a running broker; an isolated one goes as fast as it can", Exit.USAGE)
    if options.out is None or not options.as_of:
        raise CommandError("--isolated needs --out DIR and at least one --as-of YYYY-MM-DD", Exit.USAGE)
    _require_folder(options.out)
    worker_settings = StreamsSettings(**{name: getattr(settings, name) for name in StreamsSettings.model_fields})
    return replay_isolated(
        options.log, options.as_of, options.out, settings.kafka.broker, worker_settings, settings.emitter, _mapping(options)
    )


def _require_folder(out: Path) -> None:
    """Raise CommandError where files cannot be written into `out`, because it or a folder above it is a file."""
    there = next((one for one in (out, *out.parents) if one.exists()), None)
    if there is not None and not there.is_dir():
        raise CommandError(f"--out {out}: {there} is a file; name a folder", Exit.USAGE)


def _running(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    if options.out is not None or options.as_of:
        raise CommandError("--out and --as-of go with --isolated", Exit.USAGE)
    bootstrap = settings.kafka.bootstrap or read_running(settings.data.dir).get("bootstrap")
    if not bootstrap:
        raise CommandError(
            "no broker runs here: start `queryloop up`, set QUERYLOOP_KAFKA_BOOTSTRAP, or replay with --isolated",
            Exit.UNAVAILABLE,
        )
    mapping = _mapping(options)
    counters, positions = replay(options.log, bootstrap, settings.kafka, settings.emitter, Pacing(options.speed), mapping)
    return {"log": options.log.name, "bootstrap": bootstrap, **asdict(counters), "positions": positions}


def _describe(summary: dict[str, Any], out: Path | None) -> str:
    if out is None:
        said = f"{summary['log']}: {summary['delivered']:,} events delivered to {summary['bootstrap']}"
        return said if summary["delivered"] else f"{said}\n{NOTHING}"
    bad = ", ".join(f"{reason} {number:,}" for reason, number in summary["quarantined"].items()) or "none"
    lines = [
        f"{summary['log']}: {summary['lines']:,} lines on {summary['broker']} in {summary['seconds']:.1f} s",
        f"counted {summary['counted']:,}, duplicates {summary['duplicates']:,}, quarantined: {bad}",
        f"tables in {out}/",
        *([] if summary["lines"] else [NOTHING]),
    ]
    if empty := [day for day, rows in summary["rows"].items() if not rows["windows"]]:
        latest = summary["latest_ts"]
        last = "the log has no readable event" if latest is None else f"the log's latest event is of {_shown_time(latest)}"
        lines.append(f"no windows as of {', '.join(empty)}: no impression of the 14 days before counts; {last}")
    return "\n".join(lines)


def _describe_preview(name: str, found: Preview, mapped: bool) -> str:
    """Return the result of a check as text of printable characters, whatever is in the log."""
    types = ", ".join(f"{kind} {number:,}" for kind, number in found.types.items()) or "none"
    bad = ", ".join(f"{reason} {number:,}" for reason, number in found.reasons.items()) or "none"
    lines = [f"{name}: {found.lines:,} lines; events: {types}; to quarantine: {bad}"]
    if found.first_ts is not None and found.last_ts is not None:
        lines.append(f"from {_shown_time(found.first_ts)} to {_shown_time(found.last_ts)}")
    lines += ["first lines:", *(f"  {printable(line)}" for line in found.first_lines)] if found.lines else [NOTHING]
    if found.first_refused:
        lines.append("first to be refused:")
        lines += [f"  {_describe_place(one.line, one.row)}: {one.reason}: {one.detail}" for one in found.first_refused]
        if not mapped and not found.types and all(NO_TYPE.search(one.detail) for one in found.first_refused):
            lines.append(FOREIGN)
    return "\n".join(lines)


def _describe_place(line: int, row: int | None) -> str:
    return f"line {line}" if row is None else f"row {row}"


def _shown_time(ts: float) -> str:
    return datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
