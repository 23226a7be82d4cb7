"""`queryloop verify`: every window and co-occurrence counted anew from the log or the lake, compared with the shards."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from queryloop.commands.shard_reads import live_counts
from queryloop.commands.status import read_running
from queryloop.exits import CommandError, Exit
from queryloop.settings import Settings, read_settings
from queryloop.verify.arrivals import LogRecord
from queryloop.verify.lake_verification import verify_lake
from queryloop.verify.shard_verification import Log, Verdict, empty_counts, rows, unverifiable, verify_shard
from queryloop.verify.topic_reader import open_partition
from streams.api.snapshot import Counts
from streams.brokers.topics import describe_topic, topic_id
from streams.emitter.record_batches import MAX_RECORD_BYTES, partition_of
from streams.events.erasures import read_tombstones
from streams.events.schema import printable
from streams.importers.log_files import read_log, session_of
from streams.importers.mapping import Mapping, read_mapping
from streams.store.counted_log import check_log

SOURCES = {"kafka": "Kafka", "lake": "the lake", "log": "the log file"}


def run(options: argparse.Namespace) -> int:
    """Verify and print the outcome; exit code 0 equal, 1 different, 6 equal as far as can be compared. Raises CommandError."""
    if options.mapping is not None and options.log is None:
        raise CommandError("--mapping says how to read a log: it goes with --log FILE", Exit.USAGE)
    settings, began = read_settings(options), time.monotonic()
    mapping = None if options.mapping is None else read_mapping(options.mapping)
    with _progress() as bars:
        verdicts = (
            [_verify_lake(settings, bars)] if options.from_lake else list(_verify_log(settings, options.log, mapping, bars))
        )
    seconds = round(time.monotonic() - began, 3)
    source = "lake" if options.from_lake else "log" if options.log else "kafka"
    if options.json:
        _print_json(verdicts, source, seconds)
    else:
        _print_text(verdicts, source, seconds, options.limit)
    if not all(verdict.equal for verdict in verdicts):
        return Exit.FAILED
    return Exit.DONE if all(verdict.complete for verdict in verdicts) else Exit.INCOMPLETE


def _verify_lake(settings: Settings, bars: Progress) -> Verdict:
    live = {partition: live_counts(settings, partition) for partition in range(settings.kafka.partitions)}
    held = {partition: counts for partition, counts in live.items() if counts is not None}
    bar = bars.add_task("days", total=None)
    return verify_lake(held, settings.open_lake(), lambda done, total: bars.update(bar, completed=done, total=total))


def _verify_log(settings: Settings, path: Path | None, mapping: Mapping | None, bars: Progress) -> Iterator[Verdict]:
    check_log(settings.data.dir, settings.kafka)
    (settings.data.dir / "run").mkdir(parents=True, exist_ok=True)
    tombstones = read_tombstones(settings.data.dir)
    for partition in range(settings.kafka.partitions):
        counts = live_counts(settings, partition) or empty_counts(settings.rules)
        bar = bars.add_task(f"shard {partition}", total=counts.events or None)
        source = _read_file(settings, partition, path, mapping) if path else _read_topic(settings, partition, counts)
        with tempfile.TemporaryDirectory(prefix="verify-", dir=settings.data.dir / "run") as folder, source as log:
            if isinstance(log, Verdict):
                yield log
                continue
            counted = replace(log, records=_count(log.records, bars, bar))
            now_us = round(time.time() * 1e6)
            yield verify_shard(partition, counts, counted, settings.events, Path(folder), now_us, tombstones)
    if path is None:
        yield from _verify_uncounted(settings)


def _verify_uncounted(settings: Settings) -> Iterator[Verdict]:
    """Yield a verdict for each partition of the topic that has no shard."""
    topic, partitions = describe_topic(settings.kafka.at(_bootstrap(settings)), settings.kafka.topic), settings.kafka.partitions
    for partition in range(partitions, topic.partitions):
        why = f"no shard counts this partition: topic {topic.name} has {topic.partitions}, kafka.partitions is {partitions}"
        yield unverifiable(partition, empty_counts(settings.rules), why)


def _bootstrap(settings: Settings) -> str:
    bootstrap = settings.kafka.bootstrap or read_running(settings.data.dir).get("bootstrap")
    if not bootstrap:
        raise CommandError("no broker runs here: start it, set QUERYLOOP_KAFKA_BOOTSTRAP, or use --from-lake", Exit.UNAVAILABLE)
    return str(bootstrap)


@contextmanager
def _read_topic(settings: Settings, partition: int, counts: Counts) -> Iterator[Log | Verdict]:
    """Yield the shard's log, or a verdict where it is another log than the shard has counted."""
    address, next_offset = settings.kafka.at(_bootstrap(settings)), counts.next_offset or 0
    if counts.topic_id is not None and (now := topic_id(address, settings.kafka.topic)) != counts.topic_id:
        yield unverifiable(partition, counts, f"the shard has counted topic {counts.topic_id}, on the broker is {now}")
        return
    with open_partition(address, settings.kafka.topic, partition) as reader:
        if counts.next_offset is not None and reader.first > next_offset:
            why = f"the log begins at offset {reader.first}, the shard has counted to {next_offset}: what lies between is lost"
            yield unverifiable(partition, counts, why)
            return
        if reader.end < next_offset and settings.kafka.broker != "embedded":
            yield unverifiable(partition, counts, f"the log ends at offset {reader.end}, the shard has counted to {next_offset}")
            return
        removed_until_us = reader.removed_until_us(counts.rules.future_tolerance_us, next_offset)
        yield Log(reader.read(next_offset), removed_until_us, missing=reader.missing)


@contextmanager
def _read_file(settings: Settings, partition: int, path: Path, mapping: Mapping | None) -> Iterator[Log]:
    yield Log(_records_of(path, mapping, partition, settings.kafka.partitions))


def _records_of(path: Path, mapping: Mapping | None, partition: int, partitions: int) -> Iterator[LogRecord]:
    """Yield the lines of a log that a replay sends to this partition, each as a record."""
    for number, line in enumerate(read_log(path, mapping)):
        if partition_of(session_of(line), partitions) == partition:
            yield number, None, line[:MAX_RECORD_BYTES]


def _count(records: Iterable[LogRecord], bars: Progress, bar: Any) -> Iterator[LogRecord]:
    lines = 0
    for number, record in enumerate(records):
        lines += record[2].count(b"\n") + 1 if record[2] else 1
        if number % 256 == 0:
            bars.update(bar, completed=lines)
        yield record
    bars.update(bar, completed=lines, total=lines)


def _print_json(verdicts: Sequence[Verdict], source: str, seconds: float) -> None:
    """Print the outcome as one JSON object, row by row: there may be millions of differing keys."""
    head = {
        "equal": all(verdict.equal for verdict in verdicts),
        "complete": all(verdict.complete for verdict in verdicts),
        "source": source,
        "events": sum(verdict.lines for verdict in verdicts),
        "differing": sum(len(verdict.differences) + len(verdict.account) for verdict in verdicts),
        "shards": [_summary(verdict) for verdict in verdicts],
        "seconds": seconds,
    }
    text = json.dumps(head, indent=2)
    sys.stdout.write(text[: text.rindex("}")].rstrip() + ',\n  "differences": [')
    keys = ({"shard": verdict.partition, **row} for verdict in verdicts for row in rows(verdict.differences))
    for number, row in enumerate(keys):
        sys.stdout.write(("," if number else "") + "\n    " + json.dumps(row))
    sys.stdout.write("]\n}\n")


def _summary(verdict: Verdict) -> dict[str, Any]:
    return {
        "shard": verdict.partition,
        "next_offset": verdict.next_offset,
        "events": verdict.lines,
        "first_day": verdict.days[0].isoformat() if verdict.days else None,
        "last_day": verdict.days[-1].isoformat() if verdict.days else None,
        "left_out": [{"day": day.isoformat(), "reason": why} for day, why in sorted(verdict.left_out.items())],
        "doubts": verdict.doubts,
        "differing_keys": len(verdict.differences),
        "account": {name: {"live": live, "recounted": recounted} for name, (live, recounted) in verdict.account.items()},
    }


def _print_text(verdicts: Sequence[Verdict], source: str, seconds: float, limit: int) -> None:
    for verdict in verdicts:
        print(_describe(verdict))
        for name, (live, recounted) in verdict.account.items():
            print(f"  {name}: live {live:,}, recounted {recounted:,}")
    shown = [(verdict, row) for verdict in verdicts for row in rows(verdict.differences.slice(0, limit))][:limit]
    for verdict, row in shown:
        print(f"  {_where(verdict)} {_key(row)}: live {_numbers(row['live'])}, recounted {_numbers(row['recounted'])}")
    differing = sum(len(verdict.differences) for verdict in verdicts)
    if differing > len(shown):
        print(f"  and {differing - len(shown):,} more keys (--limit, or --json for all)")
    events, equal = sum(verdict.lines for verdict in verdicts), all(verdict.equal for verdict in verdicts)
    complete = all(verdict.complete for verdict in verdicts)
    word = "DIFFERENT" if not equal else "equal" if complete else "equal as far as can be compared"
    print(f"{word}: {events:,} lines from {SOURCES[source]} in {seconds:.1f} s")


def _describe(verdict: Verdict) -> str:
    days = f"{verdict.days[0]} to {verdict.days[-1]}" if verdict.days else "no day"
    lines = [f"{_where(verdict)}: {verdict.lines:,} lines below offset {verdict.next_offset}, {days} compared"]
    lines += [f"  cannot be compared: {why}" for why in verdict.doubts]
    for why in sorted(set(verdict.left_out.values())):
        left = sorted(day for day, reason in verdict.left_out.items() if reason == why)
        lines.append(f"  left out: {left[0]} to {left[-1]}, {why}")
    return "\n".join(lines)


def _where(verdict: Verdict) -> str:
    return "all shards" if verdict.partition is None else f"shard {verdict.partition}"


def _key(row: dict[str, Any]) -> str:
    """Return the key as printable text, since users wrote its queries."""
    query = printable(row["query"])
    if row["kind"] == "window":
        return f"{row['day']} window {query!r}, {printable(row['item'])!r} at {row['position']}"
    return f"{row['day']} co-occurrence {query!r}, {printable(row['next_query'])!r}"


def _numbers(numbers: dict[str, int]) -> str:
    return " ".join(f"{name} {number:,}" for name, number in numbers.items())


def _progress() -> Progress:
    """Return progress bars on standard error, hidden where that is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
