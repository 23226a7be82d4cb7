"""What killed children left on disk is delivered by the next emitter on the folder, however many children it has."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from streams.emitter.emitter import Emitter, EmitterSettings
from streams.emitter.left_outboxes import take_left
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line

AWAY = "127.0.0.1:1"


def leave(folder: Path, *names: str, delivered: int = 0, topic: str = "an-id") -> None:
    """Leave an outbox with these lines, of which the first ones are delivered."""
    outbox = Outbox(folder, 10_000_000, 3600.0)
    for name in names:
        outbox.append([Line(name.encode(), f"session-{name}", 0.0)])
    outbox.mark_delivered(outbox.mark.next + delivered, topic)
    outbox.close()


def waiting(outbox: Outbox) -> list[tuple[bytes, str]]:
    """Return the undelivered lines and their sessions."""
    found, number = [], outbox.mark.next
    while (read := outbox.read(number))[1]:
        found += [(one.line, one.session_id) for one in read[1]]
        number = read[0] + len(read[1])
    return found


def test_events_of_all_unused_subfolders_are_taken_over_once(tmp_path: Path) -> None:
    leave(tmp_path, "own")
    leave(tmp_path / "fork-0", "a", "b", "c", delivered=1)
    leave(tmp_path / "fork-3", "d")
    for _ in range(2):
        outbox = Outbox(tmp_path, 10_000_000, 3600.0)
        take_left(outbox)
        assert waiting(outbox) == [(name.encode(), f"session-{name}") for name in ("own", "b", "c", "d")]
        outbox.close()
    left = Outbox(tmp_path / "fork-0", 10_000_000, 3600.0)
    assert waiting(left) == [] and left.mark.topic_id == "an-id"
    left.close()


def test_a_subfolder_that_a_child_uses_is_left_to_it(tmp_path: Path) -> None:
    leave(tmp_path / "fork-0", "a")
    child, outbox = Outbox(tmp_path / "fork-0", 10_000_000, 3600.0), Outbox(tmp_path, 10_000_000, 3600.0)
    take_left(outbox)
    assert waiting(outbox) == [] and waiting(child) == [(b"a", "session-a")]
    child.close()
    outbox.close()


def test_what_does_not_fit_stays_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    leave(tmp_path / "fork-0", "a" * 100, "b" * 100)
    leave(tmp_path, "own")
    outbox = Outbox(tmp_path, 200, 3600.0)
    take_left(outbox)
    assert [line for line, _ in waiting(outbox)] == [b"own", b"a" * 100]
    outbox.close()
    left = Outbox(tmp_path / "fork-0", 10_000_000, 3600.0)
    assert [line for line, _ in waiting(left)] == [b"b" * 100]
    left.close()
    assert "event=left_outbox_not_taken" in caplog.text


def test_an_emitter_without_children_delivers_what_children_left(tmp_path: Path) -> None:
    leave(tmp_path / "fork-2", "a", "b")
    with Emitter(AWAY, EmitterSettings(outbox_dir=tmp_path)) as emitter:
        assert emitter.counters().recovered == 2
        emitter.close(0)
