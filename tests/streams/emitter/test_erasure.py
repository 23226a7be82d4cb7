"""Erasure from outboxes: lines of a session or a user leave the files, the others keep their numbers."""

from __future__ import annotations

from pathlib import Path

from streams.emitter.erasure import erase_from_outboxes, find_outboxes
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line
from streams.events.erasures import Subject
from tests.support.logs import START, query

SESSION = Subject("session", "x")


def fill(folder: Path) -> None:
    """Leave three frames of three lines, of which line 4 is delivered last; every second line is of session `x`."""
    outbox = Outbox(folder, 1_000_000, 60.0)
    for first in (0, 3, 6):
        sessions = ["xy"[number % 2] for number in range(first, first + 3)]
        outbox.append([Line(query(f"e{first}", START, session_id=name), name, 0.0) for name in sessions])
    outbox.mark_delivered(4, "t")
    outbox.close()


def read_all(folder: Path) -> dict[int, str]:
    """The session of each line by its number."""
    outbox, found, number = Outbox(folder, 1_000_000, 60.0), {}, 0
    while True:
        first, lines = outbox.read(number)
        if not lines:
            outbox.close()
            return found
        found |= {first + place: line.session_id for place, line in enumerate(lines)}
        number = first + len(lines)


def test_the_lines_of_a_session_go_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    fill(tmp_path / "box")
    assert find_outboxes(tmp_path) == [tmp_path / "box"]
    assert erase_from_outboxes([tmp_path / "box"], SESSION) == (5, [])
    assert read_all(tmp_path / "box") == {1: "y", 3: "y", 5: "y", 7: "y"}
    assert b'"session_id": "x"' not in b"".join(path.read_bytes() for path in (tmp_path / "box").iterdir())
    assert erase_from_outboxes([tmp_path / "box"], SESSION) == (0, [])


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    fill(tmp_path)
    assert erase_from_outboxes([tmp_path], SESSION, dry_run=True) == (5, [])
    assert len(read_all(tmp_path)) == 9


def test_an_outbox_in_use_is_left_as_it_is_and_named(tmp_path: Path) -> None:
    fill(tmp_path)
    outbox = Outbox(tmp_path, 1_000_000, 60.0)
    assert erase_from_outboxes([tmp_path], SESSION) == (0, [tmp_path])
    outbox.close()
    assert len(read_all(tmp_path)) == 9


def test_an_outbox_of_that_session_alone_is_empty_and_takes_lines_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1_000_000, 60.0)
    outbox.append([Line(query("a", START, session_id="x"), "x", 0.0)])
    outbox.close()
    assert erase_from_outboxes([tmp_path], SESSION).lines == 1
    outbox = Outbox(tmp_path, 1_000_000, 60.0)
    outbox.append([Line(query("b", START, session_id="y"), "y", 0.0)])
    outbox.close()
    assert list(read_all(tmp_path).values()) == ["y"]
