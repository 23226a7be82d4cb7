"""`queryloop replay`: which broker a log goes to, and what is printed when it is there."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from queryloop.exits import CommandError, Exit
from queryloop.status import read_running
from streams.replay import Pace, replay, replay_isolated
from streams.worker import StreamsSettings

if TYPE_CHECKING:
    from queryloop.settings import Settings


def replay_log(options: argparse.Namespace, settings: Settings) -> int:
    """Replay as the options say and print the summary. Raises CommandError for options that do not go together."""
    summary = _isolated(options, settings) if options.isolated else _running(options, settings)
    print(json.dumps(summary, indent=2, default=str) if options.json else _describe(summary, options.out))
    return Exit.DONE


def _isolated(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    if options.speed is not None:
        raise CommandError("--speed goes with a replay to a running broker; an isolated one goes as fast as it can", Exit.USAGE)
    if options.out is None or not options.as_of:
        raise CommandError("--isolated needs --out DIR and at least one --as-of YYYY-MM-DD", Exit.USAGE)
    rooms = StreamsSettings(**{name: getattr(settings, name) for name in StreamsSettings.model_fields})
    return replay_isolated(options.log, options.as_of, options.out, settings.kafka.broker, rooms, settings.emitter)


def _running(options: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    if options.out is not None or options.as_of:
        raise CommandError("--out and --as-of go with --isolated", Exit.USAGE)
    bootstrap = settings.kafka.bootstrap or read_running(settings.data.dir).get("bootstrap")
    if not bootstrap:
        raise CommandError(
            "no broker runs here: start `queryloop up`, set QUERYLOOP_KAFKA_BOOTSTRAP, or replay with --isolated",
            Exit.UNAVAILABLE,
        )
    counters, positions = replay(options.log, bootstrap, settings.kafka, settings.emitter, Pace(options.speed))
    return {"log": options.log.name, "bootstrap": bootstrap, **asdict(counters), "positions": positions}


def _describe(summary: dict[str, Any], out: Path | None) -> str:
    if out is None:
        return f"{summary['log']}: {summary['delivered']:,} events delivered to {summary['bootstrap']}"
    bad = ", ".join(f"{reason} {number:,}" for reason, number in summary["quarantined"].items()) or "none"
    return (
        f"{summary['log']}: {summary['lines']:,} lines on {summary['broker']} in {summary['seconds']:.1f} s\n"
        f"counted {summary['counted']:,}, duplicates {summary['duplicates']:,}, quarantined: {bad}\n"
        f"tables in {out}/"
    )
