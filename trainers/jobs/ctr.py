"""The job `ctr`: trains the click predictor, and the judge on the other half of the sessions, from the lake's mature days."""

from __future__ import annotations

import logging
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

from serving.models_extra import require_models
from streams.lake.files import Lake
from streams.lake.reader import days
from streams.runtime import artifacts
from trainers.jobs.outcomes import Outcome, Skipped
from trainers.jobs.parallel import run_apart
from trainers.jobs.processes import count_cores
from trainers.jobs.settings import TrainerSettings
from trainers.predictor.examples import read_examples, take_part
from trainers.predictor.training import MIN_CLICKS, train_predictor

log = logging.getLogger(__name__)
Part = Literal["predictor", "judge"]


def run(settings: TrainerSettings) -> Outcome:
    """Publish artifacts `predictor` and `judge`. Raises Skipped while the lake has too little data."""
    as_of = newest_day(settings.open_lake()) + timedelta(days=1)
    at_once = min(2, count_cores())
    parts: tuple[Part, ...] = ("predictor", "judge")
    for part in parts:
        _check_enough(settings, as_of, part)
    require_models()
    log.info("event=stage job=ctr stage=training as_of=%s at_once=%d", as_of, at_once)
    calls = [partial(train_part, settings, as_of, part) for part in parts]
    trained = dict(zip(parts, run_apart(calls, at_once, max(1, count_cores() // at_once)), strict=True))
    detail = ", ".join(f"{part} {describe_auc(figures['auc'])}" for part, figures in trained.items())
    return Outcome(
        f"{detail} on {trained['predictor']['lists'] + trained['judge']['lists']} lists", {"as_of": str(as_of), **trained}
    )


def describe_auc(auc: float | None) -> str:
    """Return an AUC in words; held-out sessions without a click, or with clicks alone, have none."""
    return "without an auc (all held-out positions alike)" if auc is None else f"auc {auc:.3f}"


def newest_day(lake: Lake) -> date:
    """The newest mature day. Raises Skipped when there is none."""
    found = days(lake)
    if not found:
        raise Skipped(
            f"the lake {lake.url} has no day yet: the worker exports a UTC day lake.maturity_floor_s after its end, or later "
            "where clicks take longer. `queryloop status` shows what is counted and which days are in the lake"
        )
    return found[-1]


def train_part(settings: TrainerSettings, as_of: date, part: Part) -> dict[str, Any]:
    """Train predictor or judge, publish it, return its metrics and the artifact's folder. Runs in a process of its own."""
    examples = read_examples(settings.open_lake(), as_of, settings.ctr.days, part)
    size = settings.predictor.model_dump()
    start = _warm_start(settings.data.dir / "artifacts", part, size)
    meta: dict[str, Any] = {"as_of": str(as_of), "days": settings.ctr.days, "size": size, "start": start.name if start else None}

    def fill(folder: Path) -> None:
        # The manifest is written after the folder is filled, so the metrics still enter it.
        meta["metrics"] = train_predictor(examples, folder, settings.ctr, settings.predictor, start)

    artifact = artifacts.publish(settings.data.dir / "artifacts", part, fill, meta)
    return {**meta["metrics"], "artifact": str(artifact.path)}


def _warm_start(root: Path, part: Part, size: dict[str, Any]) -> Path | None:
    """Return the newest artifact of this kind if it has the size of the settings, else None."""
    newest = artifacts.latest(root, part)
    return newest.path if newest and newest.meta.get("size") == size else None


def _check_enough(settings: TrainerSettings, as_of: date, part: Part) -> None:
    whole = read_examples(settings.open_lake(), as_of, settings.ctr.days, "all")
    examples = take_part(whole, part)
    clicked, unclicked = examples.clicked, examples.positions - examples.clicked
    if min(clicked, unclicked) < 2 * MIN_CLICKS:
        raise Skipped(
            f"too few impressions for the {part}: {len(examples)} lists with {clicked} clicked and {unclicked} unclicked "
            f"positions, at least {2 * MIN_CLICKS} of each are needed. The {settings.ctr.days} days before {as_of} (ctr.days) "
            f"have {len(whole)} lists in the lake, {whole.clicked} positions clicked; the {part} learns from half of the sessions"
        )
