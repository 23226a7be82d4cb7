"""What was trained on the days of erased events, as the manifests of artifacts and releases record it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from serving.releases.registry import Release, list_releases
from streams.runtime.artifacts import MANIFEST, Manifest, list_folders, read_manifest


def find_learned(data_dir: Path, days: Collection[date]) -> dict[str, list[dict[str, Any]]]:
    """Return the artifacts that learned from these days, and the releases that have one of them.

    A policy that was aligned does not record its days: it is listed, with `days` null, if it was made after the first of them.
    """
    if not days:
        return {"artifacts": [], "releases": []}
    folders = [path for path in list_folders(data_dir / "artifacts") if (path / MANIFEST).exists()]
    found = {folder.resolve(): one for folder in folders if _may_know(one := read_manifest(folder), days)}
    releases = [{"release": release.id, "parts": _find_parts(data_dir, release, found)} for release in list_releases(data_dir)]
    artifacts = [{"kind": one.kind, "artifact": one.id, "days": _describe_days(one)} for one in found.values()]
    return {"artifacts": artifacts, "releases": [one for one in releases if one["parts"]]}


def _find_parts(data_dir: Path, release: Release, learned: Collection[Path]) -> list[str]:
    """Return which parts of a release are among these artifacts."""
    return sorted(kind for kind, part in release.parts.items() if (data_dir / part.path).resolve() in learned)


def _may_know(artifact: Manifest, days: Collection[date]) -> bool:
    covered = _covered(artifact)
    if covered is None:
        return artifact.kind == "policy" and artifact.meta.get("start") == "dpo" and artifact.created.date() >= min(days)
    return any(covered[0] <= day <= covered[1] for day in days)


def _covered(artifact: Manifest) -> tuple[date, date] | None:
    """Return the first and the last day that an artifact learned from, None where it does not say."""
    if "as_of" not in artifact.meta or "days" not in artifact.meta:
        return None
    end = date.fromisoformat(str(artifact.meta["as_of"]))
    return end - timedelta(days=int(artifact.meta["days"])), end - timedelta(days=1)


def _describe_days(artifact: Manifest) -> list[str] | None:
    covered = _covered(artifact)
    return None if covered is None else [day.isoformat() for day in covered]
