"""`queryloop erase`: a session or a user is removed from everything that can be reached, and kept out from then on."""

from __future__ import annotations

import argparse
import fcntl
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from queryloop.erase.lineage import find_learned
from queryloop.erase.places import erase_from_shards, erase_lake, erase_outboxes, find_partitions
from queryloop.exits import CommandError, Exit
from queryloop.output import clean, print_answer, rfc3339
from queryloop.settings import Settings, read_settings
from streams.events.erasures import Subject, Tombstone, find_erasure, write_erasure
from streams.events.schema import MAX_ID_CHARS, MAX_TS_US

NOT_REACHED = (
    "Kafka's own log and the quarantine topic, until their retention",
    "copies that others made of the lake",
    "weights that were trained before",
)
MARKS = ("seen",)
"""Tables that repeat other rows, by event id: they are not added to the total."""


@dataclass
class Outcome:
    """What one run removed, or with --dry-run found: rows by place, the days of them, and the outboxes that were in use."""

    shards: dict[int, dict[str, int]] = field(default_factory=dict)
    lake: dict[str, int] = field(default_factory=dict)
    outboxes: int = 0
    days: set[date] = field(default_factory=set)
    in_use: list[Path] = field(default_factory=list)

    @property
    def rows(self) -> dict[str, Any]:
        """The rows by place as JSON values."""
        shards = [{"shard": number, "rows": rows} for number, rows in self.shards.items()]
        return {"shards": shards, "lake": self.lake, "outbox_lines": self.outboxes}

    @property
    def total(self) -> int:
        """All rows that were removed, or that are there."""
        of_shards = sum(number for rows in self.shards.values() for name, number in rows.items() if name not in MARKS)
        return of_shards + sum(self.lake.values()) + self.outboxes


def run(options: argparse.Namespace) -> int:
    """Erase, or count with --dry-run, and print what was there.

    Exit code 6 if an outbox is in use. Raises SettingsError, ErasureError, and CommandError: busy while another erasure runs,
    unavailable when a shard or the lake cannot be reached. Then run it again: it finishes what was begun.
    """
    settings, subject = read_settings(options), _read_subject(options)
    now = datetime.now(UTC)
    if options.dry_run:
        outcome = _erase(settings, subject, options)
        return _report(settings, outcome, options, now, None, sorted(outcome.days))
    with _only_one(settings.data.dir):
        tombstone = find_erasure(settings.data.dir, subject)
        if subject.kind == "user":
            tombstone.until_us = max(subject.until_us, tombstone.until_us or 0)
        tombstone.state = "started"
        write_erasure(settings.data.dir, tombstone)
        outcome = _erase(settings, Subject(subject.kind, subject.id, tombstone.until_us or MAX_TS_US), options)
        _record(settings, tombstone, outcome, now)
    days = {date.fromisoformat(day) for one in tombstone.runs for day in one["days"]}
    return _report(settings, outcome, options, now, tombstone, sorted(days))


def _read_subject(options: argparse.Namespace) -> Subject:
    """Return whom to erase; a user up to now. Raises CommandError."""
    name = options.session if options.session is not None else options.user
    if not 0 < len(name) <= MAX_ID_CHARS:
        raise CommandError(f"an id has 1 to {MAX_ID_CHARS} characters, this one has {len(name)}", Exit.USAGE)
    if options.session is not None:
        return Subject("session", name)
    return Subject("user", name, round(time.time() * 1_000_000))


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the lock of erasures. Raises CommandError when another one runs."""
    folder = data_dir / "erasures"
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise CommandError("another erasure runs: wait for its end, and run this one again", Exit.BUSY) from error
    finally:
        os.close(lock)


def _erase(settings: Settings, subject: Subject, options: argparse.Namespace) -> Outcome:
    """Erase from place to place: the shards first, because what they export later goes into the lake."""
    outcome = Outcome()
    with _progress() as bars:
        bar = bars.add_task("shards", total=len(find_partitions(settings)))
        for partition, erased in erase_from_shards(settings, subject, options.dry_run):
            outcome.shards[partition] = erased["rows"]
            outcome.days |= {date.fromisoformat(day) for day in erased["days"]}
            bars.advance(bar)
        of_lake = bars.add_task("day files", total=None)
        lake = erase_lake(
            settings, subject, lambda done, total: bars.update(of_lake, completed=done, total=total), options.dry_run
        )
        outcome.lake = dict(sorted(lake.rows.items()))
        outcome.days |= lake.days
    outboxes = erase_outboxes(settings, subject, options.outbox, options.dry_run)
    outcome.outboxes, outcome.in_use = outboxes.lines, outboxes.in_use
    return outcome


def _record(settings: Settings, tombstone: Tombstone, outcome: Outcome, now: datetime) -> None:
    """Add this run to the tombstone: when it was, what it removed, and of which days; never the id."""
    tombstone.state = "started" if outcome.in_use else "done"
    days = [day.isoformat() for day in sorted(outcome.days)]
    tombstone.runs = [*tombstone.runs, {"ts": rfc3339(now.timestamp()), "rows": outcome.rows, "days": days}]
    write_erasure(settings.data.dir, tombstone)


def _report(
    settings: Settings,
    outcome: Outcome,
    options: argparse.Namespace,
    now: datetime,
    tombstone: Tombstone | None,
    days: list[date],
) -> int:
    answer = {
        "erasure": None if tombstone is None else tombstone.id,
        "ts": rfc3339(now.timestamp()),
        "kind": "session" if options.session is not None else "user",
        "hash": None if tombstone is None else tombstone.hash,
        "dry_run": options.dry_run,
        "state": "dry run" if tombstone is None else tombstone.state,
        **outcome.rows,
        "total": outcome.total,
        "days": [day.isoformat() for day in days],
        "learned": find_learned(settings.data.dir, days),
        "in_use": [str(folder) for folder in outcome.in_use],
        "not_reached": list(NOT_REACHED),
    }
    if options.json:
        print_answer(answer)
    else:
        _print_text(answer, outcome)
    return Exit.INCOMPLETE if outcome.in_use else Exit.DONE


def _print_text(answer: dict[str, Any], outcome: Outcome) -> None:
    of_shards: Counter[str] = Counter()
    for rows in outcome.shards.values():
        of_shards.update(rows)
    verb = "has" if answer["dry_run"] else "lost"
    print(f"{answer['kind']} {answer['erasure'] or '(dry run: nothing is changed)'}")
    for place, found in (("shards", of_shards), ("lake", outcome.lake), ("outboxes", {"lines": outcome.outboxes})):
        print(f"  {place:9} {verb} " + (", ".join(f"{number:,} {name}" for name, number in sorted(found.items())) or "nothing"))
    learned = answer["learned"]
    for one in learned["artifacts"]:
        print(
            f"  learned from these days: {one['kind']} {one['artifact']}"
            + ("" if one["days"] else " (its days are not recorded)")
        )
    for one in learned["releases"]:
        print(f"  release {one['release']} has {', '.join(one['parts'])} of them")
    for folder in answer["in_use"]:
        print(f"  not done: a process uses the outbox {clean(folder)}; what it delivers is dropped. Stop it and run this again")
    print(f"not reached: {'; '.join(NOT_REACHED)} (docs/erasure.md)")


def _progress() -> Progress:
    """Return progress bars on standard error, hidden where that is no terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal, transient=True)
