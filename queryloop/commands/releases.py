"""`queryloop releases`: lists the releases, who made each and what changed; promotes one, or goes back to the previous one."""

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

FIGURES = ("aec_predictor", "aec_judge", "well_formed", "mean_tokens", "duplicate_rate")


def run(options: argparse.Namespace) -> int:
    """Do the chosen step and print every release. Raises SettingsError, ReleaseError, CommandError."""
    folder = read_settings(options).data.dir
    if (options.step == "promote") != (options.id is not None):
        raise CommandError("`releases promote` takes the id of a release, the other steps take none", Exit.USAGE)
    if options.history:
        if options.step != "list":
            raise CommandError("--history lists what was done: it goes with no step", Exit.USAGE)
        return show_history(folder, as_json=options.json)
    if options.step != "list":
        change_rollout(folder, options.step, options.id)
    return show_releases(folder, as_json=options.json)


def change_rollout(folder: Path, step: str, name: str | None) -> Rollout:
    """Promote a release after verifying its checksums, or go back to the previous one. Raises ReleaseError."""
    if step == "rollback":
        return registry.rollback(folder)
    release = registry.read_release(folder, name or "")
    registry.verify(folder, release)
    return registry.promote(folder, release.id)


def show_history(folder: Path, *, as_json: bool) -> int:
    """Print each promotion and rollback, oldest first; the exit code is 1 when a line of the record is damaged."""
    changes, damaged = registry.read_history(folder)
    if as_json:
        print_answer({"changes": changes, "damaged": damaged})
    else:
        rows = [[one["ts"], one["action"], one["release"], one["before"], _maker(one)] for one in changes]
        print_table(("when", "what", "live since", "instead of", "by"), rows, texts=("by",))
        if damaged:
            print_line((f"{damaged} lines of {folder / AUDIT} cannot be read", "red"))
    return Exit.FAILED if damaged else Exit.DONE


def show_releases(folder: Path, *, as_json: bool) -> int:
    """Print every release, oldest first; the exit code is 1 when one of them cannot be read."""
    rollout, broken = registry.read_rollout(folder), registry.list_broken(folder)
    releases = {release.id: release for release in registry.list_releases(folder)}
    rows = [describe_release(release, releases, rollout) for release in releases.values()]
    if as_json:
        print_answer({"releases": rows, "broken": [str(error) for error in broken]})
    else:
        _print_table(rows, broken)
    return Exit.FAILED if broken else Exit.DONE


def describe_release(release: Release, releases: Mapping[str, Release], rollout: Rollout) -> dict[str, Any]:
    """Return a release as JSON values; `state` is champion, challenger, previous, pruned or None, `changed` the parts that differ
    from the release that it was made `from`, all of them where there is none."""
    states = {rollout.previous: "previous", rollout.challenger: "challenger", rollout.champion: "champion"}
    base = releases.get(str(release.meta.get("from")))
    before = {} if base is None else base.parts
    return {
        "release": release.id,
        "ts": release.created.timestamp(),
        "state": "pruned" if release.pruned else states.get(release.id),
        "job": release.meta.get("job"),
        "run": release.meta.get("run"),
        "by": release.meta.get("by"),
        "from": release.meta.get("from"),
        "changed": [kind for kind in registry.PARTS if release.parts.get(kind) != before.get(kind)],
        "parts": {kind: part.path for kind, part in release.parts.items()},
        "verdict": verdict(release),
        "pruned": _describe_pruned(release),
        "gate": release.gate,
        "meta": release.meta,
    }


def _describe_pruned(release: Release) -> dict[str, Any] | None:
    """Return when the artifacts of a release were removed, by whom and in which run; None while they are kept."""
    pruned = release.pruned
    return None if pruned is None else {"ts": pruned.ts.timestamp(), "by": pruned.by, "run": pruned.run}


def verdict(release: Release) -> str | None:
    """Return "passed" or "refused", None for a release that met no gate of its own: a cold start, or an index."""
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
    measured = gate.get("challenger") or {}
    figures = [f"{name.replace('_', ' ')} {measured[name]:.3f}" for name in FIGURES if name in measured]
    return "; ".join([*map(str, gate.get("reasons", [])), ", ".join(figures)])
