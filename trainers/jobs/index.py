"""The job `index`: builds an index from the co-occurrences of the lake's last days, which may go live at once."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from index.build import build_index
from serving.models_extra import require_models
from serving.releases import registry
from streams.lake.reader import read_cooccurrence, read_queries
from streams.runtime import artifacts
from trainers.jobs.ctr import newest_day
from trainers.jobs.outcomes import Outcome, Skipped
from trainers.jobs.settings import TrainerSettings

WINDOW_DAYS = 14


def run(settings: TrainerSettings) -> Outcome:
    """Publish an artifact `index`, and with `timetable.publish_index` a release of it with the champion's other parts.

    Raises Skipped while the lake has no co-occurrence."""
    root = settings.data.dir
    lake = settings.open_lake()
    newest = newest_day(lake)
    pairs = read_cooccurrence(lake, newest - timedelta(days=WINDOW_DAYS - 1), newest)
    if not pairs.num_rows:
        queries = read_queries(lake, newest - timedelta(days=WINDOW_DAYS - 1), newest)
        sessions = len(set(queries.column("session_id").to_pylist()))
        raise Skipped(
            f"no query followed another in the {WINDOW_DAYS} days up to {newest}: the lake has {queries.num_rows} queries in "
            f"{sessions} sessions. Two different ones of a session, within worker.session_gap_s, are needed"
        )
    require_models()
    meta: dict[str, Any] = {"as_of": str(newest + timedelta(days=1)), "days": WINDOW_DAYS}

    def fill(folder: Path) -> None:
        meta["metrics"] = build_index(pairs, folder, settings.index)

    artifact = artifacts.publish(root / "artifacts", "index", fill, meta)
    live = publish_with_champion(root, artifact.path) if settings.timetable.publish_index else None
    figures = {**meta["metrics"], "artifact": str(artifact.path), "release": live}
    return Outcome(f"{figures['queries']} queries, {figures['pairs']} pairs" + (f", live as {live}" if live else ""), figures)


def publish_with_champion(root: Path, index: Path) -> str | None:
    """Publish and promote the live release with this index in it; return its id, None when nothing is live yet."""
    champion = registry.read_rollout(root).champion
    if champion is None:
        return None
    live = registry.read_release(root, champion)
    meta = {"job": "index", "from": champion}
    release = registry.publish(
        root, policy=live.policy, predictor=live.predictor, judge=live.judge, index=index, gate=live.gate, meta=meta
    )
    registry.promote(root, release.id)
    return release.id
