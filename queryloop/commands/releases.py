"""`queryloop releases`: lists the releases, who made each and what changed; promotes or rejects one, or goes back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from queryloop.exits import CommandError, Exit
from queryloop.output import print_answer
from queryloop.settings import read_settings
from queryloop.tables import print_line, print_table
from serving.releases import registry
from serving.releases.registry import Release, Rollout
from streams.runtime.audit import AUDIT

MAX_REASON_CHARS = 500
WITH_ID = ("promote", "reject")
FIGURES = ("aec_predictor", "aec_judge", "well_formed", "mean_tokens", "duplicate_rate", "forced", "repetitive", "relatedness")


def run(options: argparse.Namespace) -> int:
    """Do the chosen step and print every release. Raises SettingsError, ReleaseError, CommandError."""
    folder = read_settings(options).data.dir
    _check_usage(options)
    if options.history:
        if options.step != "list":
            raise CommandError("--history lists what was done: it goes with no step", Exit.USAGE)
        return show_history(folder, as_json=options.json)
    if options.step != "list":
        change_rollout(folder, options)
    return show_releases(folder, as_json=options.json)


def _check_usage(options: argparse.Namespace) -> None:
    if (options.step in WITH_ID) != (options.id is not None):
        raise CommandError("`releases promote` and `releases reject` take the id of a release, the other steps none", Exit.USAGE)
    if options.force and options.step != "promote":
        raise CommandError("--force goes with `releases promote ID`: it makes a rejected or refused release live", Exit.USAGE)
    if options.reason is not None and options.step != "reject":
        raise CommandError("--reason goes with `releases reject ID`: it says why", Exit.USAGE)
    if len(options.reason or "") > MAX_REASON_CHARS:
        raise CommandError(f"--reason has {len(options.reason)} characters, at most {MAX_REASON_CHARS}", Exit.USAGE)


def change_rollout(folder: Path, options: argparse.Namespace) -> None:
    """Promote a release after verifying its checksums, reject one, or go back to the previous one. Raises ReleaseError."""
    if options.step == "rollback":
        registry.rollback(folder)
    elif options.step == "reject":
        registry.reject(folder, options.id, options.reason)
    else:
        registry.verify(folder, registry.read_release(folder, options.id))
        registry.promote(folder, options.id, force=options.force)


def show_history(folder: Path, *, as_json: bool) -> int:
    """Print each promotion, rollback and rejection, oldest first; the exit code is 1 when a line of the record is damaged."""
    changes, damaged = registry.read_history(folder)
    if as_json:
        full = [{**one, "forced": one.get("forced", False), "reason": one.get("reason")} for one in changes]
        print_answer({"changes": full, "damaged": damaged})
    else:
        rows = [[one["ts"], _describe_change(one), one["release"], one["before"], _maker(one)] for one in changes]
        print_table(("when", "what", "release", "live before", "by"), rows, texts=("by",))
        if damaged:
            print_line((f"{damaged} lines of {folder / AUDIT} cannot be read", "red"))
    return Exit.FAILED if damaged else Exit.DONE


def _describe_change(change: Mapping[str, Any]) -> str:
    return f"{change['action']}{' --force' if change.get('forced') else ''}"


def show_releases(folder: Path, *, as_json: bool) -> int:
    """Print every release, oldest first; the exit code is 1 when one of them cannot be read."""
    rollout, broken = registry.read_rollout(folder), registry.list_broken(folder)
    releases = {release.id: release for release in registry.list_releases(folder)}
    rejected = registry.read_rejected(folder)
    rows = [describe_release(release, releases, rollout, rejected.get(release.id)) for release in releases.values()]
    if as_json:
        print_answer({"releases": rows, "broken": [str(error) for error in broken]})
    else:
        _print_table(rows, broken)
    return Exit.FAILED if broken else Exit.DONE


def describe_release(
    release: Release, releases: Mapping[str, Release], rollout: Rollout, rejection: registry.Rejection | None
) -> dict[str, Any]:
    """Return a release as JSON values; `state` is champion, challenger, previous, rejected, pruned or None.

    `changed` are the parts that differ from the release that it was made `from`, all of them where there is none."""
    states = {rollout.previous: "previous", rollout.challenger: "challenger", rollout.champion: "champion"}
    base = releases.get(str(release.meta.get("from")))
    before = {} if base is None else base.parts
    return {
        "release": release.id,
        "ts": release.created.timestamp(),
        "state": "pruned" if release.pruned else "rejected" if rejection else states.get(release.id),
        "job": release.meta.get("job"),
        "run": release.meta.get("run"),
        "by": release.meta.get("by"),
        "from": release.meta.get("from"),
        "changed": [kind for kind in registry.PARTS if release.parts.get(kind) != before.get(kind)],
        "parts": {kind: part.path for kind, part in release.parts.items()},
        "verdict": verdict(release),
        "pruned": _describe_pruned(release),
        "rejected": _describe_rejection(rejection),
        "gate": release.gate,
        "meta": release.meta,
    }


def _describe_pruned(release: Release) -> dict[str, Any] | None:
    """Return when the artifacts of a release were removed, by whom and in which run; None while they are kept."""
    pruned = release.pruned
    return None if pruned is None else {"ts": pruned.ts.timestamp(), "by": pruned.by, "run": pruned.run}


def _describe_rejection(rejection: registry.Rejection | None) -> dict[str, Any] | None:
    """Return when a release was rejected, by whom and why; None for one that was not."""
    if rejection is None:
        return None
    return {"ts": rejection.ts.timestamp(), "by": rejection.by, "run": rejection.run, "reason": rejection.reason}


def verdict(release: Release) -> str | None:
    """Return "passed" or "refused", None for a release that met no gate of its own, as that of an index."""
    if "passed" not in release.gate or release.meta.get("job") == "index":
        return None
    return "passed" if release.gate["passed"] else "refused"


def _print_table(rows: Sequence[dict[str, Any]], broken: Sequence[registry.ReleaseError]) -> None:
    if not rows and not broken:
        print_line("no release yet: `queryloop run policy` makes the first one from policy.base and policy.annotations")
        return
    cells = [
        [row["release"], row["state"], _minute(row["ts"]), _maker(row), ", ".join(row["changed"]), row["verdict"]] for row in rows
    ]
    print_table(("release", "state", "made (UTC)", "by", "changed", "gate"), cells, texts=("by", "changed"))
    for row in rows:
        if row["pruned"] is not None:
            print_line(f"{row['release']} pruned on {_minute(row['pruned']['ts'])} UTC by {_maker(row['pruned'])}")
        if (gone := row["rejected"]) is not None:
            reason = f": {gone['reason']}" if gone["reason"] else ""
            print_line(f"{row['release']} rejected on {_minute(gone['ts'])} UTC by {_maker(gone)}{reason}")
        if row["verdict"] is not None:
            print_line(f"{row['release']} {row['verdict']}: ", _explain(row["gate"]))
    for error in broken:
        print_line(("broken: ", "red"), str(error))


def _minute(ts: float) -> str:
    return datetime.fromtimestamp(ts, UTC).strftime("%Y-%m-%d %H:%M")


def _maker(made: Mapping[str, Any]) -> str | None:
    """Return who made or changed a release: the job with its run, else the user."""
    if made.get("run") is not None:
        return f"{made['by']}, run {made['run']}"
    return made.get("by") or (f"job {made['job']}" if made.get("job") else None)


def _explain(gate: Mapping[str, Any]) -> str:
    """Return why the gate refused, and what it measured."""
    measured = {**gate.get("cold_start", {}), **gate.get("challenger", {})}
    figures = [f"{name.replace('_', ' ')} {measured[name]:.3f}" for name in FIGURES if name in measured]
    return "; ".join([*map(str, gate.get("reasons", [])), ", ".join(figures)])
