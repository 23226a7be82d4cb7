"""The inventory: sizes from manifests, when a release was last live, and what killed processes left."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from serving.releases import registry
from tests.support.pruned_folder import DAY_S, make_artifact, make_releases
from trainers.pruning.inventory import list_left, read_inventory


def test_the_size_of_an_artifact_is_that_of_its_files(tmp_path: Path) -> None:
    path = make_artifact(tmp_path, "policy", 5000, base=str(tmp_path / "artifacts" / "base" / "abc"))
    (one,) = read_inventory(tmp_path).artifacts
    assert one.bytes == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert (one.kind, one.id, one.base) == ("policy", path.name, "abc")


def test_a_base_from_a_hub_is_no_artifact(tmp_path: Path) -> None:
    make_artifact(tmp_path, "policy", base="Qwen/Qwen3-0.6B")
    (one,) = read_inventory(tmp_path).artifacts
    assert one.base == "Qwen3-0.6B"


def test_a_release_was_last_live_when_another_one_replaced_it(tmp_path: Path) -> None:
    make_releases(tmp_path, 3)
    registry.rollback(tmp_path)
    found = read_inventory(tmp_path)
    assert set(found.last_live) == {"r0000", "r0001", "r0002"}
    changes, _ = registry.read_history(tmp_path)
    assert found.last_live["r0002"] >= found.last_live["r0001"]
    assert len(changes) == 4


@pytest.mark.parametrize("place", ["run/verify-abc", "run/exports/w0/tmpabc", "artifacts/policy/.x.part"])
def test_temporary_folders_of_killed_processes_are_found(tmp_path: Path, place: str) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "counts.duckdb").write_bytes(b"x" * 77)
    changed = (folder / "counts.duckdb").stat().st_mtime
    assert list_left(tmp_path, inf, changed + DAY_S - 60) == []
    (found,) = list_left(tmp_path, inf, changed + DAY_S + 60)
    assert (found.path, found.bytes) == (folder, 77)
    assert list_left(tmp_path, changed - 60, changed + 9 * DAY_S) == [], "a job that started before may be writing it"
