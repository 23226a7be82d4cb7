"""Decides what goes and why everything else stays; pure, so that every rule can be tested by itself.

An artifact that a job may be reading stays: what was made or was live since the job started, and what was the newest of its kind
when it started. A job that starts later reads only what is newest or live, and both stay in any case.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from serving.releases.registry import Release
from trainers.pruning.inventory import Inventory, Stored
from trainers.pruning.settings import PruneSettings

DAY_S = 86_400.0
NAMED_AT_MOST = 3
AUDIT_PRECISION_S = 1.0
"""The times of promotions are recorded in whole seconds."""


@dataclass(frozen=True)
class Choice:
    """What is done with a release (`what` is "release"), an artifact (its kind), a leftover or a log, and why.

    `made` is when it was made, or last changed (epoch seconds). The bytes of a release are those of its artifacts, which have
    choices of their own."""

    what: str
    name: str
    path: Path
    bytes: int
    made: float
    stays: bool
    why: str


@dataclass(frozen=True)
class InUse:
    """The first of the jobs in progress: when it started (epoch seconds), and its name for people."""

    since: float = inf
    by: str = ""


NOBODY = InUse()


@dataclass(frozen=True)
class Rules:
    """By what is decided: the settings, the time (epoch seconds), the jobs in progress, and folders that the settings name."""

    settings: PruneSettings
    now: float
    in_use: InUse = NOBODY
    named: frozenset[Path] = frozenset()

    def describe_age(self, event: str, at: float) -> tuple[bool, str]:
        """Return whether what was made, or was live, at a time is young enough to stay, and how old it is in words."""
        days = max(self.now - at, 0.0) / DAY_S
        return days < self.settings.keep_days, f"{event} {days:.0f} days ago"


def decide(found: Inventory, root: Path, rules: Rules) -> list[Choice]:
    """Return a choice for every release that is not pruned, and for every artifact."""
    releases = [_decide_release(one, found, rules) for one in found.releases]
    kept = {choice.name for choice in releases if choice.stays}
    needed = _find_needed(root, (one for one in found.releases if one.id in kept))
    artifacts = [_decide_artifact(one, found, needed, rules) for one in found.artifacts]
    bases = _find_bases(found.artifacts, artifacts)
    unknown = [
        Choice(path.parent.name, path.name, path, 0, rules.now, True, f"{why}; remove it by hand if it is of no use")
        for path, why in found.unreadable.items()
    ]
    return [*releases, *(_keep_base(one, bases) for one in artifacts), *unknown]


def _decide_release(release: Release, found: Inventory, rules: Rules) -> Choice:
    made = release.created.timestamp()
    stays, why = _judge_release(release, found, rules)
    return Choice("release", release.id, release.path, 0, made, stays, why)


def _judge_release(release: Release, found: Inventory, rules: Rules) -> tuple[bool, str]:
    rollout, settings = found.rollout, rules.settings
    states = {
        rollout.challenger: "challenger",
        rollout.previous: "previous: `releases rollback` goes back to it",
        rollout.champion: "live",
    }
    if release.id in states:
        return True, states[release.id]
    newest = [one.id for one in found.releases[-settings.keep_releases :]]
    if release.id in newest:
        return True, f"one of the newest {settings.keep_releases} releases (prune.keep_releases)"
    event, at = "made", release.created.timestamp()
    if found.last_live.get(release.id, at) > at:
        event, at = "last live", found.last_live[release.id]
    if at >= rules.in_use.since - AUDIT_PRECISION_S:
        return True, f"{rules.in_use.by} may read it"
    return rules.describe_age(event, at)


def _decide_artifact(one: Stored, found: Inventory, needed: dict[Path, list[str]], rules: Rules) -> Choice:
    stays, why = _judge_artifact(one, found, needed, rules)
    return Choice(one.kind, one.id, one.path, one.bytes, one.made, stays, why)


def _judge_artifact(one: Stored, found: Inventory, needed: dict[Path, list[str]], rules: Rules) -> tuple[bool, str]:
    path = one.path.resolve()
    alike = [other for other in found.artifacts if other.kind == one.kind]
    before = [other.id for other in alike if other.made < rules.in_use.since]
    if path in needed:
        return True, f"part of {_name_some(needed[path])}"
    if path in rules.named:
        return True, "policy.base names it"
    if one.id == max(other.id for other in alike):
        return True, f"the newest {one.kind}, from which training starts"
    if rules.in_use.since < inf and (one.made >= rules.in_use.since or one.id == max(before)):
        return True, f"{rules.in_use.by} may read it"
    young, age = rules.describe_age("made", one.made)
    return young, age if young else f"{age}, in no release that stays"


def _find_needed(root: Path, kept: Iterable[Release]) -> dict[Path, list[str]]:
    """Return the folders of which these releases have parts, with the ids of those releases."""
    needed: dict[Path, list[str]] = {}
    for release in kept:
        for part in release.parts.values():
            needed.setdefault((root / part.path).resolve(), []).append(release.id)
    return needed


def _find_bases(stored: Collection[Stored], choices: Iterable[Choice]) -> dict[str, str]:
    """Return the ids of bases that artifacts which stay were made from, each with one of those, and bases of such bases."""
    by_id = {one.id: one for one in stored}
    waiting = [choice.name for choice in choices if choice.stays]
    bases: dict[str, str] = {}
    while waiting:
        one = by_id[waiting.pop()]
        if one.base in by_id and one.base not in bases and one.base != one.id:
            bases[one.base] = f"{one.kind} {one.id}"
            waiting.append(one.base)
    return bases


def _keep_base(choice: Choice, bases: dict[str, str]) -> Choice:
    if choice.stays or choice.name not in bases:
        return choice
    return Choice(choice.what, choice.name, choice.path, choice.bytes, choice.made, True, f"the base of {bases[choice.name]}")


def _name_some(ids: list[str]) -> str:
    newest = ids[-NAMED_AT_MOST:]
    more = len(ids) - len(newest)
    return ", ".join(newest) + (f" and {more} more" if more else "")
