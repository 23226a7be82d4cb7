"""The identity of a data folder: made once, carried by answers, and a process on another folder is told apart by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.runtime.data_folder import ID_HEADER, PATH_HEADER, DataFolder, find_data_folder, open_data_folder


def test_a_folder_gets_its_id_once_and_looking_makes_none(tmp_path: Path) -> None:
    assert find_data_folder(tmp_path / "data") == DataFolder(tmp_path / "data", None)
    assert not (tmp_path / "data").exists()
    opened = open_data_folder(tmp_path / "data")
    assert opened.id is not None and len(opened.id) == 32
    assert open_data_folder(tmp_path / "data") == find_data_folder(tmp_path / "data") == opened
    assert open_data_folder(tmp_path / "other").id != opened.id


def test_the_path_is_told_only_where_asked_for(tmp_path: Path) -> None:
    folder = open_data_folder(tmp_path / "data ü")
    assert folder.headers(with_path=False) == {ID_HEADER: folder.id}
    assert folder.headers(with_path=True)[PATH_HEADER].isascii()


def test_an_answer_from_another_folder_names_both(tmp_path: Path) -> None:
    mine, theirs = open_data_folder(tmp_path / "mine"), open_data_folder(tmp_path / "theirs ü")
    said = mine.find_stranger(theirs.headers(with_path=True))
    assert said == f"it works on another data folder ({tmp_path / 'theirs ü'}), the settings name {tmp_path / 'mine'}"
    assert f"(id {theirs.id})" in (mine.find_stranger(theirs.headers(with_path=False)) or "")
    assert mine.find_stranger(mine.headers(with_path=True)) is None


def test_a_folder_mounted_elsewhere_is_the_same_one(tmp_path: Path) -> None:
    there = open_data_folder(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert find_data_folder(tmp_path / "b").find_stranger(there.headers(with_path=True)) is None


@pytest.mark.parametrize("headers", [{}, {"Server": "nginx"}])
def test_a_server_that_names_no_folder_is_not_judged(tmp_path: Path, headers: dict[str, str]) -> None:
    assert open_data_folder(tmp_path).find_stranger(headers) is None
