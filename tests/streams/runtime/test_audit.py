"""The audit file: one line for each change with its time and who made it; lines are appended, a damaged one hides no other."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest

from streams.runtime.audit import AUDIT, Actor, acting, append_audit, find_actor, name_user, read_audit


def test_a_line_has_the_time_and_what_was_done(tmp_path: Path) -> None:
    append_audit(tmp_path, "promote", {"release": "r0001", "by": "ann@host"}, clock=lambda: 86_400.0)
    append_audit(tmp_path, "other", {"by": "ann@host"}, clock=lambda: 86_401.0)
    first = {"ts": "1970-01-02T00:00:00Z", "action": "promote", "release": "r0001", "by": "ann@host"}
    assert json.loads((tmp_path / AUDIT).read_text().splitlines()[0]) == first
    assert read_audit(tmp_path, "promote") == ([first], 0)


def test_a_line_that_a_crash_cut_is_counted_and_hides_no_other(tmp_path: Path) -> None:
    append_audit(tmp_path, "promote", {"release": "r0001"})
    with (tmp_path / AUDIT).open("ab") as file:
        file.write(b'{"ts": "19\n')
    append_audit(tmp_path, "promote", {"release": "r0002"})
    found, damaged = read_audit(tmp_path, "promote")
    assert ([one["release"] for one in found], damaged) == (["r0001", "r0002"], 1)


def test_a_job_acts_in_its_own_name_and_only_while_it_runs() -> None:
    before = find_actor()
    assert before == Actor(f"{getpass.getuser()}@{socket.gethostname()}")
    with acting(Actor("job policy", 7)):
        assert find_actor() == Actor("job policy", 7)
    assert find_actor() == before


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", nameless)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    assert name_user() == f"uid 4711@{socket.gethostname()}"
