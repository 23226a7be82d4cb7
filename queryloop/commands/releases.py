"""`queryloop releases`: lists the releases with the gate's verdicts, and promotes one or goes back to the previous one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from queryloop.exits import CommandError, Exit
from queryloop.settings import read_settings
from serving.releases import registry
from serving.releases.registry import Release, Rollout

FIGURES = ("aec_predictor", "aec_judge", "well_formed", "mean_tokens", "duplicate_rate")


def run(options: argparse.Namespace) -> int:
    """Do the chosen step and print every release. Raises SettingsError, ReleaseError, CommandError."""
    folder = read_settings(options).data.dir
    if (options.step == "promote") != (options.id is not None):
        raise CommandError("`releases promote` takes the id of a release, the other steps take none", Exit.USAGE)
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


def show_releases(folder: Path, *, as_json: bool) -> int:
    """Print every release, oldest first; the exit code is 1 when one of them cannot be read."""
    rollout, broken = registry.read_rollout(folder), registry.list_broken(folder)
    rows = [describe_release(release, rollout) for release in registry.list_releases(folder)]
    if as_json:
        print(json.dumps({"releases": rows, "broken": [str(error) for error in broken]}, indent=2, ensure_ascii=False))
    else:
        _print_table(rows, broken)
    return Exit.FAILED if broken else Exit.DONE


def describe_release(release: Release, rollout: Rollout) -> dict[str, Any]:
    """Return a release as JSON values; `state` is champion, challenger, previous or None."""
    states = {rollout.previous: "previous", rollout.challenger: "challenger", rollout.champion: "champion"}
    parts = {kind: part.path for kind, part in release.parts.items()}
    return {
        "id": release.id,
        "state": states.get(release.id),
        "created": release.created.isoformat(timespec="seconds"),
        "parts": parts,
        "gate": release.gate,
        "meta": release.meta,
    }


def _print_table(rows: list[dict[str, Any]], broken: list[registry.ReleaseError]) -> None:
    console = Console()
    if not rows and not broken:
        console.print("no release yet: `queryloop run policy` makes the first one from policy.base and policy.annotations")
        return
    table = Table("release", "created", "state", "gate", *(name.replace("_", " ") for name in FIGURES))
    for row in rows:
        table.add_row(row["id"], row["created"], row["state"] or "", verdict(row["gate"]), *_figures(row["gate"]))
    console.print(table)
    for error in broken:
        console.print(f"[red]broken:[/] {escape(str(error))}", soft_wrap=True)


def verdict(gate: dict[str, Any]) -> str:
    """Return the gate's verdict with its reasons, as one cell."""
    if "passed" not in gate:
        return "none"
    return "passed" if gate["passed"] else escape("refused: " + "; ".join(gate.get("reasons", [])))


def _figures(gate: dict[str, Any]) -> list[str]:
    measured = gate.get("challenger") or {}
    return [f"{measured[name]:.3f}" if name in measured else "" for name in FIGURES]
