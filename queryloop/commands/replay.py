"""`queryloop replay`: sends a log to a running or an isolated broker and prints the summary, or checks it (`--check`)."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from queryloop.commands.status import read_running
from queryloop.exits import CommandError, Exit
from queryloop.output import print_answer
from queryloop.replay.descriptions import describe_delivery, describe_isolated, describe_preview, describe_refused
from queryloop.replay.replay import Pacing, replay, replay_isolated
from queryloop.replay.running import AgeCheck, RunningSystem, await_outcome, find_running
from queryloop.replay.spooling import spooled
from queryloop.replay.termination import terminable
from queryloop.settings import Settings, read_settings
from streams.brokers.topics import TopicError, topic_id
from streams.events.schema import Reason
from streams.importers.mapping import Mapping, read_mapping
from streams.importers.preview import Preview, preview
from streams.worker.settings import StreamsSettings


def run(options: argparse.Namespace) -> int:
    """Replay or check a log and print the summary. Raises CommandError for options that do not go together."""
    settings = read_settings(options)
    _require_fitting(options)
    with ExitStack() as stack:
        stack.enter_context(terminable())
        log = stack.enter_context(spooled(options.log))
        mapping = None if options.mapping is None else read_mapping(options.mapping)
        if options.check:
            return _check(options, settings, log, mapping)
        return (_isolated if options.isolated else _running)(options, settings, log, mapping)


def _require_fitting(options: argparse.Namespace) -> None:
    if options.check and (options.out is not None or options.as_of or options.speed is not None):
        raise CommandError("--check sends nothing: it goes with --mapping, --isolated and --json alone", Exit.USAGE)
    if options.isolated and options.speed is not None:
        raise CommandError("--speed goes with a replay to a running broker; an isolated one goes as fast as it can", Exit.USAGE)
    if options.isolated and not options.check and (options.out is None or not options.as_of):
        raise CommandError("--isolated needs --out DIR and at least one --as-of YYYY-MM-DD", Exit.USAGE)
    if not options.isolated and (options.out is not None or options.as_of):
        raise CommandError("--out and --as-of go with --isolated", Exit.USAGE)
    if options.out is not None:
        _require_folder(options.out, options.force)


def _require_folder(out: Path, force: bool) -> None:
    """Raise CommandError where files cannot be written into `out`, or would be written over without `force`."""
    there = next((one for one in (out, *out.parents) if one.exists()), None)
    if there is not None and not there.is_dir():
        raise CommandError(f"--out {out}: {there} is a file; name a folder", Exit.USAGE)
    if out.exists() and not force and any(out.iterdir()):
        raise CommandError(f"--out {out} is not empty: name another folder, or write over its tables with --force", Exit.USAGE)


def _check(options: argparse.Namespace, settings: Settings, log: Path, mapping: Mapping | None) -> Exit:
    """Print what would be sent; return FAILED when a line would be refused."""
    running = "compared with no running system" if options.isolated else _find_running(settings, _bootstrap(settings))
    found = _preview(log, settings, mapping, running)
    compared = isinstance(running, RunningSystem)
    if options.json:
        print_answer(_preview_json(options.log.name, found, running))
    else:
        print(describe_preview(options.log.name, found, mapping is not None))
        said = f"compared with the worker at {running.url}" if isinstance(running, RunningSystem) else f"events' age: {running}"
        print(said if compared or not options.isolated else "events' age: an isolated replay keeps everything")
    return Exit.FAILED if found.reasons else Exit.DONE


def _preview_json(name: str, found: Preview, running: RunningSystem | str) -> dict[str, Any]:
    refused = [{**asdict(one.place), "reason": one.reason, "detail": one.detail} for one in found.first_refused]
    url = running.url if isinstance(running, RunningSystem) else None
    return {"log": name, **asdict(found), "first_refused": refused, "running": url}


def _preview(log: Path, settings: Settings, mapping: Mapping | None, running: RunningSystem | str) -> Preview:
    now = time.time()
    ages = AgeCheck(running, round(now * 1e6)) if isinstance(running, RunningSystem) else None
    return preview(log, now, mapping, settings.events, None if ages is None else ages.find_fault)


def _isolated(options: argparse.Namespace, settings: Settings, log: Path, mapping: Mapping | None) -> Exit:
    """Count the log by itself; return FAILED when lines were refused and none counts."""
    worker_settings = StreamsSettings(**{name: getattr(settings, name) for name in StreamsSettings.model_fields})
    summary = replay_isolated(log, options.as_of, options.out, settings.kafka.broker, worker_settings, settings.emitter, mapping)
    if options.json:
        tables = [{"as_of": day, **rows} for day, rows in summary["rows"].items()]
        print_answer({name: value for name, value in summary.items() if name not in ("rows", "as_of")} | {"tables": tables})
    else:
        print(describe_isolated(summary, options.out, mapping is not None))
    return Exit.FAILED if summary["quarantined"] and not summary["counted"] else Exit.DONE


def _bootstrap(settings: Settings) -> str | None:
    return settings.kafka.bootstrap or read_running(settings.data.dir).get("bootstrap")


def _find_running(settings: Settings, bootstrap: str | None) -> RunningSystem | str:
    """Return the running system that counts the broker's topic, or why there is none."""
    url = read_running(settings.data.dir).get("worker") or settings.worker.local_url
    try:
        return find_running(
            settings, url, None if bootstrap is None else topic_id(settings.kafka.at(bootstrap), settings.kafka.topic)
        )
    except TopicError as error:
        return str(error)


def _running(options: argparse.Namespace, settings: Settings, log: Path, mapping: Mapping | None) -> Exit:
    """Send the log, wait for what becomes of it; return FAILED when events ended in quarantine meanwhile."""
    bootstrap = _bootstrap(settings)
    if not bootstrap:
        raise CommandError(
            "no broker runs here: start `queryloop up`, set QUERYLOOP_KAFKA_BOOTSTRAP, or replay with --isolated",
            Exit.UNAVAILABLE,
        )
    running = _find_running(settings, bootstrap)
    _require_sendable(_preview(log, settings, mapping, running), running, options)
    counters, positions = replay(log, bootstrap, settings.kafka, settings.emitter, Pacing(options.speed), mapping)
    outcome = await_outcome(settings, running, positions) if isinstance(running, RunningSystem) and positions else None
    unknown = None if isinstance(running, RunningSystem) else running
    summary = {"log": options.log.name, "bootstrap": bootstrap, **asdict(counters), "positions": positions}
    summary |= {"outcome": None if outcome is None else asdict(outcome), "unknown": unknown}
    if options.json:
        shards = [{"shard": number, "next_offset": offset} for number, offset in sorted(positions.items())]
        print_answer({name: value for name, value in summary.items() if name != "positions"} | {"shards": shards})
    else:
        print(describe_delivery(summary))
    if outcome is None:
        return Exit.DONE
    return Exit.FAILED if outcome.quarantined else Exit.DONE if outcome.applied else Exit.INCOMPLETE


def _require_sendable(found: Preview, running: RunningSystem | str, options: argparse.Namespace) -> None:
    """Raise CommandError before a line is sent where no line is an event, or a running system would refuse old ones."""
    old = found.reasons.get(Reason.TOO_OLD, 0)
    refused = describe_refused(found, options.mapping is not None)
    if found.lines and not found.types and not old:
        raise CommandError("\n".join([f"{options.log}: no line is an event; nothing was sent", *refused]), Exit.FAILED)
    if old and not options.allow_late:
        assert isinstance(running, RunningSystem)
        said = f"{old:,} of {found.lines:,} lines are older than the {running.retention_days} days that the running system keeps"
        how = "count them with --isolated, or send them with --allow-late all the same: they go to quarantine as too_old"
        raise CommandError("\n".join([f"{options.log}: {said}; nothing was sent", *refused, how]), Exit.FAILED)
    if old:
        print(f"{old:,} lines are too old for the running system and go to quarantine", file=sys.stderr)
