"""What stays and why, rule by rule, and for any folder: no release that stays lacks a part, and nothing young or live goes."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from serving.releases.registry import Part, Release, Rollout
from trainers.pruning.decisions import DAY_S, Choice, InUse, Rules, decide
from trainers.pruning.inventory import Inventory, Stored
from trainers.pruning.settings import PruneSettings

ROOT = Path("/data")
NOW = 1_000 * DAY_S
KINDS = ("policy", "predictor", "base")


def stored(kind: str, age_days: float, base: str | None = None) -> Stored:
    made = NOW - age_days * DAY_S
    name = f"{made:020.3f}-{kind}"
    return Stored(kind, name, ROOT / "artifacts" / kind / name, 100, made, base)


def release(number: int, age_days: float, *parts: Stored) -> Release:
    named = {one.kind: Part(f"artifacts/{one.kind}/{one.id}", "0" * 64) for one in parts}
    created = datetime.fromtimestamp(NOW - age_days * DAY_S, UTC)
    policy = next((one.path for one in parts if one.kind == "policy"), ROOT)
    name = f"r{number:04d}"
    return Release(name, ROOT / "releases" / name, policy, None, None, None, None, {}, created, {}, named)


def choose(
    artifacts: list[Stored],
    releases: list[Release],
    rollout: Rollout | None = None,
    last_live: dict[str, float] | None = None,
    in_use: InUse | None = None,
    **settings: Any,
) -> dict[str, Choice]:
    found = Inventory(tuple(artifacts), tuple(releases), rollout or Rollout(), last_live or {}, {})
    keep = PruneSettings(**{"keep_days": 30, "keep_releases": 1, **settings})
    return {one.name: one for one in decide(found, ROOT, Rules(keep, NOW, in_use or InUse()))}


def test_live_previous_and_challenger_stay_however_old() -> None:
    releases = [release(number, 500) for number in range(6)]
    chosen = choose([], releases, Rollout(champion="r0002", challenger="r0000", previous="r0001"))
    assert [one.name for one in chosen.values() if one.stays] == ["r0000", "r0001", "r0002", "r0005"]
    assert [chosen[name].why for name in ("r0000", "r0002", "r0003")] == ["challenger", "live", "made 500 days ago"]


def test_the_newest_releases_stay_however_old() -> None:
    releases = [release(number, 500 - number) for number in range(6)]
    chosen = choose([], releases, keep_releases=3)
    assert [one.name for one in chosen.values() if one.stays] == ["r0003", "r0004", "r0005"]
    assert chosen["r0003"].why == "one of the newest 3 releases (prune.keep_releases)"


def test_a_release_is_kept_from_when_it_was_last_live() -> None:
    """A policy that answered for a year and was replaced a week ago is one that somebody may want back."""
    releases = [release(0, 400), release(1, 400), release(2, 20), release(3, 1)]
    chosen = choose([], releases, last_live={"r0000": NOW - 7 * DAY_S, "r0001": NOW - 60 * DAY_S})
    assert {name: one.why for name, one in chosen.items()} | {"r0003": ""} == {
        "r0000": "last live 7 days ago",
        "r0001": "last live 60 days ago",
        "r0002": "made 20 days ago",
        "r0003": "",
    }
    assert [one.stays for one in chosen.values()] == [True, False, True, True]


def test_an_artifact_stays_while_one_of_its_releases_does() -> None:
    shared, lone, newest = stored("predictor", 300), stored("predictor", 200), stored("predictor", 100)
    releases = [release(0, 300, shared, stored("policy", 300)), release(1, 200, lone), release(2, 90, shared)]
    chosen = choose([shared, lone, newest], releases)
    assert (chosen[shared.id].stays, chosen[shared.id].why) == (True, "part of r0002")
    assert (chosen[lone.id].stays, chosen[lone.id].why) == (False, "made 200 days ago, in no release that stays")
    assert chosen[newest.id].why == "the newest predictor, from which training starts"


def test_the_base_that_a_kept_artifact_was_made_from_stays() -> None:
    """Also the base of a base; the base of what goes is not needed."""
    first, second, unused, newest = (stored("base", age) for age in (500, 400, 300, 200))
    second = stored("base", 400, base=first.id)
    adapter, old = stored("policy", 100, base=second.id), stored("policy", 350, base=unused.id)
    chosen = choose([first, second, unused, newest, old, adapter], [release(0, 100, adapter)])
    assert [one.stays for one in chosen.values()] == [True, True, True, False, True, False, True]
    assert chosen[second.id].why == f"the base of policy {adapter.id}"


def test_a_base_that_the_settings_name_stays() -> None:
    first, newest = stored("base", 500), stored("base", 400)
    found = Inventory((first, newest), (), Rollout(), {}, {})
    rules = Rules(PruneSettings(), NOW, named=frozenset({first.path}))
    assert [one.why for one in decide(found, ROOT, rules)] == [
        "policy.base names it",
        "the newest base, from which training starts",
    ]


def test_a_job_that_runs_for_long_keeps_what_it_started_from_and_what_it_made() -> None:
    """It started 50 days ago from the newest predictor and release of then; both are old, and neither is the newest now."""
    before, read, made, later = (stored("predictor", age) for age in (80, 60, 45, 40))
    releases = [release(0, 90), release(1, 80), release(2, 70)]
    last_live = {"r0000": NOW - 70 * DAY_S, "r0001": NOW - 50 * DAY_S + 0.3}
    in_use = InUse(NOW - 50 * DAY_S + 0.7, "run 5 (policy), in progress,")
    chosen = choose([before, read, made, later], releases, last_live=last_live, in_use=in_use)
    assert [one.name for one in chosen.values() if not one.stays] == ["r0000", before.id]
    assert chosen[read.id].why == chosen["r0001"].why == "run 5 (policy), in progress, may read it"


ages = st.floats(0, 100)
folders = st.lists(st.tuples(st.sampled_from(KINDS), ages), max_size=12)
picks = st.lists(st.lists(st.integers(0, 11), max_size=4), max_size=8)


@given(folders, picks, st.lists(st.integers(0, 7), min_size=3, max_size=3), st.integers(1, 5), ages)
def test_no_release_that_stays_lacks_a_part_and_nothing_young_or_live_goes(
    made: list[tuple[str, float]], contents: list[list[int]], rolled: list[int], keep_releases: int, since_days: float
) -> None:
    artifacts = [stored(kind, age) for kind, age in made]
    releases = [
        release(number, 90 - number, *(artifacts[one] for one in parts if one < len(artifacts)))
        for number, parts in enumerate(contents)
    ]
    rollout = Rollout(*(f"r{number:04d}" for number in rolled))
    in_use = InUse(NOW - since_days * DAY_S, "run 1")
    chosen = choose(artifacts, releases, rollout, in_use=in_use, keep_releases=keep_releases)
    gone = {one.name for one in chosen.values() if not one.stays}
    for one in releases:
        if one.id not in gone:
            assert not {Path(part.path).name for part in one.parts.values()} & gone
    assert not gone & {rollout.champion, rollout.previous, rollout.challenger}
    assert not gone & {one.id for one in releases[-keep_releases:]}
    assert not gone & {one.id for one in artifacts if NOW - one.made < 30 * DAY_S or one.made >= in_use.since}
    for kind in KINDS:
        alike = [one for one in artifacts if one.kind == kind]
        if alike:
            assert max(alike, key=lambda one: one.id).id not in gone
    assert all(one.why for one in chosen.values())


@given(folders, picks)
def test_what_is_old_and_unused_goes(made: list[tuple[str, float]], contents: list[list[int]]) -> None:
    """The other way round: what stays has one of the reasons, counted here from its definition."""
    artifacts = [stored(kind, age) for kind, age in made]
    releases = [
        release(number, 90 - number, *(artifacts[one] for one in parts if one < len(artifacts)))
        for number, parts in enumerate(contents)
    ]
    chosen = choose(artifacts, releases, keep_releases=2)
    used = {Path(part.path).name for one in releases[-2:] for part in one.parts.values()}
    newest = {max(one.id for one in artifacts if one.kind == kind) for kind in {one.kind for one in artifacts}}
    expected = used | newest | {one.id for one in artifacts if NOW - one.made < 30 * DAY_S} | {one.id for one in releases[-2:]}
    assert {one.name for one in chosen.values() if one.stays} == expected
