"""The outbox: undelivered lines are read back in order, within its size, whatever is appended, torn or reopened."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from streams.emitter.outbox import Disk, Outbox, OutboxError
from streams.emitter.record_batches import Line
from streams.emitter.segments import HEADER, encode_frame, load_frame, read_frames

MAX_BYTES = 1_000_000


class FailingDisk:
    """A disk with room for `room` more bytes (None: any number), which then fails with `error`."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.error = errno.ENOSPC
        self.can_truncate = True
        self.calls = Disk(self.write, self.truncate, os.fsync)

    def write(self, file: int, data: bytes) -> int:
        if self.room == 0:
            raise OSError(self.error, os.strerror(self.error))
        written = os.write(file, data if self.room is None else data[: self.room])
        self.room = None if self.room is None else self.room - written
        return written

    def truncate(self, file: int, size: int) -> None:
        if not self.can_truncate:
            raise OSError(self.error, os.strerror(self.error))
        os.ftruncate(file, size)


def raise_io_error(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


def lines(*texts: str) -> list[Line]:
    return [Line(text.encode(), f"s{text}", 0.0) for text in texts]


def read_all(outbox: Outbox, number: int = 0) -> list[tuple[int, bytes]]:
    found = []
    while (got := outbox.read(number))[1]:
        first, some = got
        found += [(first + place, one.line) for place, one in enumerate(some)]
        number = first + len(some)
    return found


def tail(folder: Path) -> Path:
    return max(folder.glob("*.log"))


def test_lines_are_read_back_in_order_with_their_sessions_also_from_the_middle_of_a_frame(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    outbox.append(lines("a", "b", "c"))
    outbox.append([Line("öß\x00".encode(), "s\n\x1b", 0.0)])
    assert read_all(outbox) == [(0, b"a"), (1, b"b"), (2, b"c"), (3, "öß\x00".encode())]
    assert outbox.read(2, emitted_at=7.0) == (2, [Line(b"c", "sc", 7.0)])
    assert outbox.read(3)[1][0].session_id == "s\n\x1b"
    outbox.close()


def test_the_next_process_finds_the_mark_and_goes_on_numbering(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    outbox.append(lines("a", "b"))
    outbox.mark_delivered(1, "topic-1")
    outbox.close()
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    assert (outbox.mark.next, outbox.mark.topic_id, outbox.next) == (1, "topic-1", 2)
    outbox.append(lines("c"))
    assert read_all(outbox, outbox.mark.next) == [(1, b"b"), (2, b"c")]
    assert outbox.count(0, 3) == 3
    outbox.close()


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    first = Outbox(tmp_path, MAX_BYTES, 60)
    with pytest.raises(OutboxError, match=f"another process uses the outbox {tmp_path}"):
        Outbox(tmp_path, MAX_BYTES, 60)
    first.close()
    Outbox(tmp_path, MAX_BYTES, 60).close()


def test_a_closed_outbox_is_free_though_a_forked_child_has_not_closed_its_copy_of_the_lock_yet(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1000, 0.0)
    copy = os.dup(outbox._lock)
    outbox.close()
    Outbox(tmp_path, 1000, 0.0).close()
    os.close(copy)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxError, match=r"file/outbox cannot be made.*emitter\.outbox_dir"):
        Outbox(tmp_path / "file" / "outbox", MAX_BYTES, 60)


def test_a_torn_tail_is_truncated_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    outbox.append(lines("a"))
    outbox.append(lines("b"))
    outbox.close()
    os.truncate(tail(tmp_path), tail(tmp_path).stat().st_size - 1)
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    assert read_all(outbox) == [(0, b"a")]
    assert "event=outbox_torn" in caplog.text
    outbox.append(lines("c"))
    assert read_all(outbox) == [(0, b"a"), (1, b"c")]
    outbox.close()


def test_a_mark_ahead_of_what_a_power_loss_left_gives_no_number_twice(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    outbox.append(lines("a", "b", "c"))
    outbox.mark_delivered(3, None)
    outbox.close()
    os.truncate(tail(tmp_path), 0)
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    outbox.append(lines("d"))
    assert read_all(outbox, outbox.mark.next) == [(3, b"d")]
    outbox.close()


def test_a_damaged_frame_is_skipped_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    for text in "abc":
        outbox.append(lines(text))
    frames = list(read_frames(tail(tmp_path)))
    with tail(tmp_path).open("r+b") as file:
        file.seek(frames[1].offset + HEADER.size)
        file.write(b"\xff")
    assert read_all(outbox) == [(0, b"a"), (2, b"c")]
    assert "event=outbox_damaged" in caplog.text
    outbox.close()


def test_a_damaged_mark_sends_everything_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    outbox.append(lines("a"))
    outbox.mark_delivered(1, "t")
    outbox.close()
    (tmp_path / "delivered.json").write_bytes(b"{")
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    assert outbox.mark.next == 0 and "event=outbox_mark_damaged" in caplog.text
    assert read_all(outbox, outbox.mark.next) == [(0, b"a")]
    outbox.close()


def test_delivered_segments_are_kept_for_their_time_and_undelivered_ones_are_never_trimmed(tmp_path: Path) -> None:
    now = 1000.0
    outbox = Outbox(tmp_path, MAX_BYTES, 60, lambda: now)
    big = "x" * 40_000
    for _ in range(6):
        outbox.append(lines(big, big))
    assert len(outbox.segments) > 3
    begins = [one.first for one in outbox.segments]
    outbox.mark_delivered(begins[2], "t")
    outbox.trim()
    assert outbox.oldest == 0, "delivered just now: kept for a topic that may be lost"
    now += 61
    outbox.trim()
    assert outbox.oldest == begins[2]
    now += 1000
    outbox.trim()
    assert outbox.oldest == begins[2]
    outbox.close()


def test_a_full_outbox_deletes_delivered_segments_first_and_then_names_the_oldest(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 1e9)
    big = "x" * 50_000
    while outbox.segment_to_drop(100_000) is None:
        outbox.append(lines(big))
    outbox.mark_delivered(outbox.segments[3].first, "t")
    size = outbox.size
    outbox.trim()
    assert outbox.size == size and outbox.oldest == 0, "within the bound nothing goes before its time"
    outbox.append(lines(*[big] * 10))
    outbox.trim()
    assert outbox.oldest > 0
    outbox.mark_delivered(outbox.oldest, "t")
    segment = outbox.segment_to_drop(MAX_BYTES)
    assert segment is outbox.segments[0] and segment.next > outbox.mark.next
    outbox.delete_oldest()
    assert not segment.path.exists()
    outbox.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG])
@pytest.mark.parametrize("room", [0, 1, 22])
@pytest.mark.parametrize("can_truncate", [True, False])
def test_a_frame_that_the_disk_refuses_leaves_nothing_that_hides_a_later_one(
    tmp_path: Path, number: int, room: int, can_truncate: bool
) -> None:
    disk = FailingDisk()
    outbox = Outbox(tmp_path, MAX_BYTES, 60, disk=disk.calls)
    outbox.append(lines("a"))
    disk.room, disk.error, disk.can_truncate = room, number, can_truncate
    with pytest.raises(OSError) as raised:
        outbox.append(lines("b"))
    assert raised.value.errno == number and outbox.next == 1
    disk.room = None
    outbox.append(lines("c"))
    assert read_all(outbox) == [(0, b"a"), (1, b"c")]
    assert outbox.size == tail(tmp_path).stat().st_size
    outbox.close()
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    assert read_all(outbox) == [(0, b"a"), (1, b"c")], "and so the next process reads them"
    outbox.close()


def test_a_folder_that_was_removed_is_noticed_and_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    outbox = Outbox(folder, MAX_BYTES, 60)
    outbox.append(lines("a"))
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="was removed or moved"):
        outbox.append(lines("b"))
    assert [(one.first, one.next) for one in outbox.make_again()] == [(0, 1)]
    outbox.append(lines("b"))
    assert read_all(outbox) == [(1, b"b")]
    with pytest.raises(OutboxError, match="another process uses"):
        Outbox(folder, MAX_BYTES, 60)
    outbox.close()


def test_a_segment_that_cannot_be_begun_refuses_the_frame_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    big = "x" * 100_000
    outbox.append(lines(big))
    handles = len(list(Path("/proc/self/fd").iterdir()))
    with monkeypatch.context() as patched:
        patched.setattr("streams.emitter.outbox.sync", raise_io_error)
        for _ in range(3):
            with pytest.raises(OSError):
                outbox.append(lines("b"))
    assert len(list(Path("/proc/self/fd").iterdir())) == handles
    outbox.append(lines("c"))
    assert [number for number, _ in read_all(outbox)] == [0, 1] and len(outbox.segments) == 2
    outbox.close()


def test_a_mark_that_could_not_be_written_is_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    outbox.append(lines("a"))
    with monkeypatch.context() as patched:
        patched.setattr("streams.emitter.outbox.replace_file", raise_io_error)
        with pytest.raises(OSError):
            outbox.mark_delivered(1, "t")
    outbox.mark_delivered(1, "t")
    outbox.close()
    outbox = Outbox(tmp_path, MAX_BYTES, 60)
    assert outbox.mark.next == 1
    outbox.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=300), min_size=1, max_size=6), st.integers(0, 5), st.binary(min_size=1, max_size=60), st.data()
)
def test_damage_anywhere_costs_only_the_frames_it_hit(
    texts: list[bytes], place: int, garbage: bytes, data: st.DataObject
) -> None:
    """Garbage before a frame, and one frame overwritten in part: every other frame is read, in order."""
    frames = [encode_frame(number, [Line(text, "s", 0.0)]) for number, text in enumerate(texts)]
    hit = place % len(frames)
    start = data.draw(st.integers(0, len(frames[hit]) - 1))
    broken = bytearray(frames[hit])
    broken[start] ^= 0x55
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(b"".join([*frames[:hit], garbage, bytes(broken), *frames[hit + 1 :]]))
        assert [one.first for one in read_frames(path)] == [number for number in range(len(frames)) if number != hit]


@given(st.binary(min_size=1, max_size=200), st.integers(0, 10_000))
def test_a_frame_with_any_byte_changed_fails_its_checksum(data: bytes, place: int) -> None:
    frame = bytearray(encode_frame(5, [Line(data, "s", 0.0), Line(b"", "", 0.0)]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(frame)
        (whole,) = read_frames(path, check=True)
        assert (whole.first, whole.lines, whole.size) == (5, 2, len(frame))
        assert load_frame(path, whole, 1.0) == [Line(data, "s", 1.0), Line(b"", "", 1.0)]
        frame[place % len(frame)] ^= 1 + place % 255
        path.write_bytes(frame)
        assert not any(load_frame(path, one, 0.0) for one in read_frames(path)) or not list(read_frames(path, check=True))
        assert list(read_frames(path, check=True)) == []


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 5), st.integers(0, 30_000)),
        st.tuples(st.just("deliver"), st.integers(0, 100), st.just(0)),
        st.tuples(st.just("crash"), st.integers(0, 60_000), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
        st.tuples(st.just("room"), st.integers(0, 400_000), st.just(0)),
        st.tuples(st.just("later"), st.integers(1, 100), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_undelivered_lines_are_kept_in_order_whatever_happens(script: list[tuple[str, int, int]]) -> None:
    """The oracle: a list of (number, line), truncated where the crash truncated the file, without dropped segments."""
    clock = [0.0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outbox = Outbox(folder, MAX_BYTES, 50, lambda: clock[0])
        kept: list[tuple[int, bytes]] = []
        tails: list[tuple[int, int]] = []  # of the open file: its size after each frame, and the number after the frame
        made = 0
        for step, count, size in script:
            if step == "append":
                new = [b"%d-" % (made + k) + b"x" * size for k in range(count)]
                made += count
                kept += list(enumerate(new, outbox.next))
                path = outbox.segments[-1].path
                outbox.append([Line(one, "s", 0.0) for one in new])
                tails = [*(tails if outbox.segments[-1].path == path else []), (outbox.segments[-1].size, outbox.next)]
            elif step == "deliver":
                outbox.mark_delivered(min(outbox.next, outbox.mark.next + count), "t")
            elif step == "later":
                clock[0] += count
                outbox.trim()
            elif step == "room":
                outbox.trim()
                while outbox.segment_to_drop(count) is not None:
                    outbox.delete_oldest()
                assert outbox.size + count <= MAX_BYTES or len(outbox.segments) == 1
            else:
                outbox.close()
                if step == "crash" and tail(folder).stat().st_size:
                    end = max(0, tail(folder).stat().st_size - count)
                    os.truncate(tail(folder), end)
                    begin = int(tail(folder).stem)
                    whole = max([after for at, after in tails if at <= end], default=begin)
                    kept = [one for one in kept if one[0] < max(whole, begin)]
                tails = []
                outbox = Outbox(folder, MAX_BYTES, 50, lambda: clock[0])
            kept = [one for one in kept if one[0] >= outbox.oldest]
            begin = outbox.mark.next
            assert read_all(outbox, begin) == [one for one in kept if one[0] >= begin]
        assert read_all(outbox) == kept
        outbox.close()
