"""`queryloop prune`: lists what nobody needs any more and why everything else stays; with --yes it is removed."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from queryloop.exits import CommandError, Exit
from queryloop.output import print_answer
from queryloop.settings import Settings, read_settings
from queryloop.tables import print_line, print_table
from trainers.jobs.ledger import Ledger, State
from trainers.jobs.outcomes import JobError
from trainers.jobs.processes import hold_kind, record
from trainers.jobs.prune import describe, preview, remove
from trainers.pruning.decisions import Choice

UNITS = ("B", "kB", "MB", "GB", "TB")


def run(options: argparse.Namespace) -> int:
    """List or remove. Raises SettingsError, ReleaseError, LedgerError, and CommandError: busy while the job `prune` runs."""
    settings = read_settings(options)
    number, choices = _remove(settings) if options.yes else (None, preview(settings))
    if options.json:
        print_answer(to_json(choices, number))
    else:
        _print_text(choices, done=options.yes)
    return Exit.DONE


def to_json(choices: Sequence[Choice], number: int | None) -> dict[str, Any]:
    """Return the answer as JSON values; `number` is that of the run in the ledger, None for a dry run."""
    return {
        "dry_run": number is None,
        "run": number,
        "bytes": sum(one.bytes for one in choices if not one.stays),
        "removed": [_choice_to_json(one) for one in choices if not one.stays],
        "kept": [_choice_to_json(one) for one in choices if one.stays],
    }


def _choice_to_json(one: Choice) -> dict[str, Any]:
    return {"what": one.what, "name": one.name, "bytes": one.bytes, "made_ts": one.made, "why": one.why}


def _remove(settings: Settings) -> tuple[int, list[Choice]]:
    """Prune under the job's lock, and record it in the ledger as a run of the job."""
    ledger = Ledger(settings.data.dir / "ledger.sqlite")
    with hold_kind(settings.data.dir, "prune") as mine:
        if not mine:
            raise CommandError("another run of the job prune is in progress: wait for its end", Exit.BUSY)
        ledger.fail_lost("prune")
        begun = ledger.begin("prune", os.getpid())
        with record(ledger, begun):
            try:
                choices = remove(settings)
            except JobError as error:
                ledger.finish(begun.id, State.FAILED, {"detail": str(error)})
                raise CommandError(str(error)) from error
        ledger.finish(begun.id, State.SUCCEEDED, describe(choices).record())
    return begun.id, choices


def _print_text(choices: Sequence[Choice], *, done: bool) -> None:
    rows = [_to_row(one, "stays") for one in choices if one.stays]
    rows += [_to_row(one, "removed" if done else "goes") for one in choices if not one.stays]
    if rows:
        print_table(("", "what", "name", "size", "why"), rows, texts=("name", "why"))
    total = show_bytes(sum(one.bytes for one in choices if not one.stays))
    if done:
        print_line(f"removed {total}; the records of releases and artifacts stay")
    else:
        print_line(f"{total} would be removed: nothing is changed without --yes")


def _to_row(one: Choice, step: str) -> list[Any]:
    return [step, one.what, one.name, None if one.what == "release" else show_bytes(one.bytes), one.why]


def show_bytes(number: float) -> str:
    """Return bytes with two or three digits and a decimal unit."""
    for unit in UNITS:
        if number < 1000 or unit == UNITS[-1]:
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" or number >= 10 else f"{number:.1f} {unit}"
