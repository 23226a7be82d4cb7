"""Tombstones: they recognise what was erased by a keyed hash, and never hold an id."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.events.erasures import (
    ErasureError,
    Owner,
    Subject,
    copy_erasures,
    find_erasure,
    read_owner,
    read_tombstones,
    write_erasure,
)
from tests.support.logs import START, query

SESSION = Subject("session", "a session id")


def bury(folder: Path, subject: Subject) -> None:
    tombstone = find_erasure(folder, subject)
    tombstone.until_us = subject.until_us if subject.kind == "user" else None
    write_erasure(folder, tombstone)


def test_a_tombstone_covers_its_session_for_ever_and_its_user_up_to_its_time(tmp_path: Path) -> None:
    bury(tmp_path, SESSION)
    bury(tmp_path, Subject("user", "u", 100))
    found = read_tombstones(tmp_path)
    assert found.cover(Owner("a session id", None, 10**15))
    assert not found.cover(Owner("another", None, 1))
    assert [found.cover(Owner("another", "u", ts_us)) for ts_us in (100, 101, None)] == [True, False, True]
    assert not found.cover(Owner(None, "a session id", 1))


def test_no_file_has_the_id_and_the_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    bury(tmp_path, SESSION)
    files = list((tmp_path / "erasures").iterdir())
    assert len(files) == 2
    assert not any(b"a session id" in path.read_bytes() or "a session id" in path.name for path in files)
    assert stat.S_IMODE((tmp_path / "erasures" / "key").stat().st_mode) == 0o600


def test_each_data_folder_hashes_with_a_key_of_its_own_unless_it_is_copied(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    assert find_erasure(one, SESSION).hash != find_erasure(two, SESSION).hash
    bury(one, SESSION)
    copy_erasures(one, three)
    assert read_tombstones(three).cover(Owner("a session id"))


def test_without_erasures_nothing_is_made_and_nothing_is_covered(tmp_path: Path) -> None:
    assert not read_tombstones(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_tombstone_or_key_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    bury(tmp_path, SESSION)
    (tmp_path / "erasures" / "key").unlink()
    with pytest.raises(ErasureError, match=r"erasures/key: cannot be read"):
        read_tombstones(tmp_path)
    next((tmp_path / "erasures").glob("*.json")).write_text("{")
    with pytest.raises(ErasureError, match=r"session-[0-9a-f]{16}\.json: cannot be read"):
        read_tombstones(tmp_path)


@pytest.mark.parametrize(
    ("raw", "owner"),
    [
        (query("e", START, session_id="s", user_id="u"), Owner("s", "u", round(START * 1e6))),
        (query("e", "2020-09-13T12:26:40Z", session_id="s"), Owner("s", None, round(START * 1e6))),
        (b'{"session_id":"s","user_id":"u", broken', Owner("s", "u", None)),
        (b'{"session_id" : "\\u0073", "ts": 1.5, "x": "cut he', Owner("s", None, 1_500_000)),
        (b'{"session_id": 7, "user_id": "u"}', Owner(None, "u", None)),
        (b"[1, 2]", Owner()),
        (b"\xff\x00", Owner()),
    ],
)
def test_whose_a_line_is_can_be_read_where_the_line_is_broken_too(raw: bytes, owner: Owner) -> None:
    assert read_owner(raw) == owner


@given(st.binary(max_size=200))
def test_any_bytes_have_an_owner_or_none(raw: bytes) -> None:
    read_owner(raw)
