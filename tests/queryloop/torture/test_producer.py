"""A producer: what it sends, what it leaves to its outbox, and where it goes on after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from queryloop.torture.generated_log import TortureLog
from queryloop.torture.producer import NotAcknowledged, send_log
from queryloop.torture.stage_files import Progress, StageFiles
from streams.emitter.emitter import QueueFull

MADE = TortureLog(3, 2_000, 1)


class FakeEmitter:
    """Keeps lines; `room` lines fit before it is full, and it takes `stages` stages to disk and broker."""

    def __init__(self, room: int = 10**9, stored: int = 10**9, flushed: int = 10**9) -> None:
        self.lines: list[bytes] = []
        self.room, self.stored, self.flushed = room, stored, flushed

    def emit_line(self, line: bytes, session_id: str) -> None:
        if len(self.lines) >= self.room:
            raise QueueFull("full")
        self.lines.append(line)

    def store(self, timeout: float) -> bool:
        self.stored -= 1
        return self.stored >= 0

    def flush(self, timeout: float) -> bool:
        self.flushed -= 1
        self.room += 1000
        return self.flushed >= 0

    def positions(self) -> dict[int, int]:
        return {0: len(self.lines)}

    def counters(self) -> str:
        return "counters"


@pytest.fixture
def files(tmp_path: Path) -> StageFiles:
    made = StageFiles(tmp_path)
    made.open_gate(MADE.stages)
    return made


def send(files: StageFiles, emitter: FakeEmitter, *, told_to_stop: bool = True) -> None:
    send_log(MADE, 0, files, emitter, lambda seconds: told_to_stop)  # type: ignore[arg-type]


def lines(first: int, last: int) -> list[bytes]:
    return [line.line for stage in range(first, last) for line in MADE.stage_lines(0, stage)]


def test_the_whole_log_is_sent_and_reported_when_it_is_acknowledged(files: StageFiles) -> None:
    emitter = FakeEmitter()
    send(files, emitter)
    assert emitter.lines == lines(0, MADE.stages)
    assert files.progress(0) == Progress(MADE.stages, MADE.stages, {0: 2_000})


def test_a_full_buffer_is_waited_for_and_nothing_is_left_out(files: StageFiles) -> None:
    emitter = FakeEmitter(room=7)
    send(files, emitter)
    assert emitter.lines == lines(0, MADE.stages)


def test_no_stage_is_sent_before_the_gate_is_open(files: StageFiles) -> None:
    files.open_gate(3)
    emitter = FakeEmitter()
    send(files, emitter)
    assert emitter.lines == lines(0, 3)
    assert files.progress(0).stages == 3


def test_what_was_in_the_outbox_is_not_emitted_again_but_acknowledged_first(files: StageFiles) -> None:
    files.report(0, Progress(stored=5, stages=4, positions={0: 40, 1: 7}))
    files.open_gate(6)
    emitter = FakeEmitter()
    send(files, emitter)
    assert emitter.lines == lines(5, 6)
    assert files.progress(0) == Progress(6, 6, {0: len(emitter.lines), 1: 7})


def test_a_stage_is_stored_before_it_is_acknowledged(files: StageFiles) -> None:
    with pytest.raises(NotAcknowledged, match="stage 2 is not acknowledged"):
        send(files, FakeEmitter(flushed=2))
    assert files.progress(0).stored == 3
    assert files.progress(0).stages == 2


def test_a_disk_that_stores_nothing_ends_the_producer(files: StageFiles) -> None:
    with pytest.raises(NotAcknowledged, match="stage 0 is not in the outbox"):
        send(files, FakeEmitter(stored=0))
    assert files.progress(0) == Progress()
