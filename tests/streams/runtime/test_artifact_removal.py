"""Removing a published folder: hidden first, then its files, its manifest last, which stays as a record."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.runtime import artifacts
from streams.runtime.artifact_removal import delete, find_record, hide, list_hidden, list_unfinished


@pytest.fixture
def published(tmp_path: Path) -> Path:
    def fill(folder: Path) -> None:
        (folder / "more").mkdir()
        (folder / "more" / "weights").write_bytes(b"w")

    return artifacts.publish(tmp_path, "policy", fill, {}).path


def test_a_hidden_folder_is_found_by_no_reader(tmp_path: Path, published: Path) -> None:
    hidden = hide(published)
    assert artifacts.list_folders(tmp_path) == []
    assert artifacts.latest(tmp_path, "policy") is None
    assert list_hidden(tmp_path) == [hidden]
    assert (hidden / "more" / "weights").exists()


def test_the_manifest_is_all_that_is_left(tmp_path: Path, published: Path) -> None:
    content = (published / "manifest.json").read_bytes()
    delete(hide(published))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [find_record(published)]
    assert find_record(published).read_bytes() == content
    assert list_hidden(tmp_path) == []


def test_a_removal_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, published: Path) -> None:
    """After the files were deleted, and after the manifest was moved."""
    hidden = hide(published)
    (hidden / "more" / "weights").unlink()
    delete(hidden)
    hidden.mkdir()
    delete(hidden)
    assert list_hidden(tmp_path) == []
    assert find_record(published).exists()


def test_a_folder_that_is_being_filled_is_told_apart(tmp_path: Path, published: Path) -> None:
    (published.parent / ".new.part").mkdir()
    assert list_unfinished(tmp_path) == [published.parent / ".new.part"]
    assert artifacts.list_folders(tmp_path, "policy") == [published]
