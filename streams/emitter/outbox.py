"""The outbox: event lines on disk from before they are sent until some time after they are delivered.

Lines are numbered in the order of emission. A mark says up to which number all are delivered, and to which topic (by its id).
Lines before the mark are kept in case the topic is lost and made anew; lines after it are sent first by the next process.
The size is bounded: delivered lines are deleted first, then undelivered ones (the caller reports these), both oldest first.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streams.emitter.record_batches import Line
from streams.emitter.segments import SUFFIX, Frame, Segment, encode_frame, load_frame, read_frames, segment_path
from streams.runtime.atomic_files import replace_file, sync

log = logging.getLogger(__name__)

SEGMENT_BYTES = 16 << 20
SEGMENTS = 16
"""How many segments a full outbox has at least; a full outbox drops one segment at a time."""
MARK = "delivered.json"


class OutboxError(RuntimeError):
    """An outbox that cannot be used; the text names its folder and what to do."""


class OutboxInUseError(OutboxError):
    """Another emitter, of this process or another one, uses the outbox."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The calls of the operating system by which a segment is written; each raises OSError."""

    write: Callable[[int, bytes], int] = os.write
    truncate: Callable[[int, int], None] = os.ftruncate
    fsync: Callable[[int], None] = os.fsync


DISK = Disk()


class DeliveryMark(msgspec.Struct, frozen=True):
    """All lines before number `next` are delivered to the topic with id `topic_id` (None: to none yet)."""

    next: int = 0
    topic_id: str | None = None


class Outbox:
    """The folder of one emitter. Not thread-safe: it belongs to the emitter's background thread.

    Raises OutboxError when another process uses the folder or it cannot be written.
    """

    def __init__(
        self, folder: Path, max_bytes: int, keep_s: float, clock: Callable[[], float] = time.time, disk: Disk = DISK
    ) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self._keep_s = keep_s
        self._clock = clock
        self._disk = disk
        self._segment_bytes = min(SEGMENT_BYTES, max(1, max_bytes // SEGMENTS))
        self._lock = _lock_folder(folder)
        self._unsynced = self._mark_unwritten = False
        self._read_position: tuple[int, Path, int] | None = None
        try:
            self.mark = self._read_mark()
            self.segments = self._open_segments()
            self.next = max(self.mark.next, self.segments[-1].next if self.segments else 0)
            self._file = self._begin_segment()
        except OSError as error:
            os.close(self._lock)
            raise OutboxError(
                f"the outbox {folder} cannot be read or written: {error}; fix it, or set emitter.outbox_dir"
            ) from error

    @property
    def oldest(self) -> int:
        """The number of the oldest line that is kept."""
        return self.segments[0].first

    @property
    def size(self) -> int:
        """Bytes of all segments."""
        return sum(one.size for one in self.segments)

    @property
    def undelivered_bytes(self) -> int:
        """Bytes of the segments with undelivered lines."""
        return sum(one.size for one in self.segments if one.next > self.mark.next)

    @property
    def is_segment_full(self) -> bool:
        """Whether the next lines begin a new segment."""
        return self.segments[-1].size >= self._segment_bytes

    def append(self, lines: Sequence[Line]) -> None:
        """Write lines under the next numbers, as one frame, without fsync. Raises OSError, and then none of them is kept."""
        if not self.is_there():
            raise FileNotFoundError(errno.ENOENT, "was removed or moved", str(self.segments[-1].path))
        if self.is_segment_full:
            self._start_next_segment()
        segment = self.segments[-1]
        data = encode_frame(self.next, lines)
        self._write(segment, data)
        segment.lines += len(lines)
        segment.size += len(data)
        self.next += len(lines)
        segment.next = self.next
        self._unsynced = True

    def is_there(self) -> bool:
        """Return whether the file that is written still lies under its name: a removed file takes bytes and keeps none."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return os.path.samestat(os.fstat(self._file), self.segments[-1].path.stat())
        return False

    def make_again(self) -> list[Segment]:
        """After the folder or the last segment was removed: begin anew; return the segments that are gone.

        Raises OSError, OutboxError.
        """
        lock = _lock_folder(self.folder) if not (self.folder / "lock").exists() else None
        gone = [one for one in self.segments if not one.path.exists()]
        self.segments = [one for one in self.segments if one.path.exists()]
        try:
            file = self._begin_segment()
        except OSError:
            self.segments += gone
            self.segments.sort(key=lambda one: one.first)
            if lock is not None:
                os.close(lock)
            raise
        self._mark_unwritten = True
        file, self._file = self._file, file
        os.close(file)
        if lock is not None:
            lock, self._lock = self._lock, lock
            os.close(lock)
        return gone

    def delete_delivered(self) -> bool:
        """Delete the oldest segment if all its lines are delivered; return whether one was deleted."""
        if len(self.segments) < 2 or self.segments[0].next > self.mark.next:
            return False
        self.delete_oldest()
        return True

    def skip_numbers(self, count: int) -> None:
        """Skip the numbers of lines that could not be written."""
        self.next += count

    def read(self, number: int, emitted_at: float = 0.0) -> tuple[int, list[Line]]:
        """Return the lines from `number` to the end of their frame, and the number of the first; no lines at the outbox's end.

        The first may have a higher number than requested: the lines between were never written, were dropped or are damaged.
        """
        while (found := self._find_frame(number)) is not None:
            segment, frame = found
            lines = load_frame(segment.path, frame, emitted_at)
            self._read_position = (frame.next, segment.path, frame.offset + frame.size)
            if lines is not None:
                begin = max(number, frame.first)
                return begin, lines[begin - frame.first :]
            log.error("event=outbox_damaged file=%s offset=%d bytes=%d", segment.path, frame.offset, frame.size)
            number = frame.next
        return number, []

    def count(self, begin: int, end: int) -> int:
        """Return how many lines with begin <= number < end are kept; skipped numbers inside a segment count too."""
        return sum(_count_overlap(one, begin, end) for one in self.segments)

    def mark_delivered(self, number: int, topic_id: str | None) -> None:
        """Store that all lines before `number` are delivered to the topic with this id."""
        mark = DeliveryMark(number, topic_id)
        self._mark_unwritten = self._mark_unwritten or mark != self.mark
        self.mark = mark
        if self._mark_unwritten:
            replace_file(self.folder / MARK, msgspec.json.encode(mark), durable=False)
            self._mark_unwritten = False

    def sync(self) -> None:
        """Make appended lines survive a loss of power (fsync). After an OSError those since the last sync may be lost then."""
        if self._unsynced:
            self._unsynced = False  # the kernel reports a failure once: the next fsync says nothing about these lines
            self._disk.fsync(self._file)

    def trim(self) -> None:
        """Delete delivered segments that were kept long enough, and the oldest delivered ones while the outbox is too large."""
        old = self._clock() - self._keep_s
        while len(self.segments) > 1 and self.segments[0].next <= self.mark.next:
            closed_at = self.segments[0].closed_at
            if self.size <= self.max_bytes and closed_at is not None and closed_at > old:
                return
            self.delete_oldest()

    def segment_to_drop(self, size_needed: int) -> Segment | None:
        """Return the oldest segment if it must go so that `size_needed` bytes fit; after `trim` it has undelivered lines."""
        return self.segments[0] if len(self.segments) > 1 and self.size + size_needed > self.max_bytes else None

    def delete_oldest(self) -> None:
        """Delete the oldest segment."""
        self.segments.pop(0).path.unlink(missing_ok=True)

    def close(self) -> None:
        """Sync, and release the folder for another process."""
        try:
            self.sync()
        finally:
            if self._lock >= 0:
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # a child that was just forked may still have a copy of the handle
            self.release()

    def release(self) -> None:
        """Close this process's handles, without sync: a forked child does so, its parent goes on writing."""
        handles, self._file, self._lock = (self._file, self._lock), -1, -1
        for handle in handles:
            if handle >= 0:
                os.close(handle)

    def _write(self, segment: Segment, data: bytes) -> None:
        """Write a frame's bytes after the segment's others; cut off what was written of it when the disk refuses the rest."""
        written = 0
        try:
            while written < len(data):
                count = self._disk.write(self._file, data[written:] if written else data)
                if count <= 0:
                    raise OSError(errno.EIO, f"only {written} of {len(data)} bytes could be written", str(segment.path))
                written += count
        except OSError:
            try:
                self._disk.truncate(self._file, segment.size)
            except OSError:  # the torn frame stays; a reader skips it
                segment.size += written
            raise

    def _find_frame(self, number: int) -> tuple[Segment, Frame] | None:
        """Return the frame with line `number`, or the first frame after it."""
        for segment in self.segments:
            if segment.next <= number or not segment.size:
                continue
            expected, path, offset = self._read_position or (-1, None, 0)
            resumes = path == segment.path and expected <= number
            end = offset if resumes else 0
            for frame in read_frames(segment.path, end):
                if frame.offset > end:
                    log.error("event=outbox_damaged file=%s offset=%d bytes=%d", segment.path, end, frame.offset - end)
                if frame.next > number:
                    return segment, frame
                end = frame.offset + frame.size
        return None

    def _start_next_segment(self) -> None:
        """Close the segment and begin the next one."""
        self.sync()
        closed_at = self._clock()
        file = self._begin_segment()
        self.segments[-2].closed_at = closed_at
        file, self._file = self._file, file
        os.close(file)

    def _begin_segment(self) -> int:
        path = segment_path(self.folder, self.next)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            sync(self.folder)
            size = os.fstat(file).st_size
        except OSError:
            os.close(file)
            raise
        self.segments.append(Segment(path, self.next, self.next, size=size))
        return file

    def _open_segments(self) -> list[Segment]:
        """Return the segments that an earlier process left; truncate a last frame that was half written."""
        paths = sorted(path for path in self.folder.glob(f"*{SUFFIX}") if path.stem.isdigit())
        found = [_load_segment(path, last=path == paths[-1]) for path in paths]
        for segment in found:
            if segment.path.stat().st_size == 0:
                segment.path.unlink()
        return [one for one in found if one.lines]

    def _read_mark(self) -> DeliveryMark:
        path = self.folder / MARK
        try:
            return msgspec.json.decode(path.read_bytes(), type=DeliveryMark)
        except FileNotFoundError:
            return DeliveryMark()
        except msgspec.MsgspecError as error:
            log.warning("event=outbox_mark_damaged file=%s error=%r action=%r", path, str(error), "everything kept is sent again")
            return DeliveryMark()


def _load_segment(path: Path, *, last: bool) -> Segment:
    frames = list(read_frames(path, check=last))
    end = frames[-1].offset + frames[-1].size if frames else 0
    stat = path.stat()
    if end < stat.st_size:
        said = "cut: it was being written when the process stopped" if last else "not readable: the file is damaged"
        log.warning("event=outbox_torn file=%s offset=%d bytes=%d said=%r", path, end, stat.st_size - end, said)
        if last:
            os.truncate(path, end)
    first, size = int(path.stem), end if last else stat.st_size
    return Segment(path, first, frames[-1].next if frames else first, sum(one.lines for one in frames), size, stat.st_mtime)


def _count_overlap(segment: Segment, begin: int, end: int) -> int:
    if begin <= segment.first and segment.next <= end:
        return segment.lines
    return max(0, min(segment.next, end) - max(segment.first, begin))


def _lock_folder(folder: Path) -> int:
    """Lock the folder's lock file; the kernel releases it when the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OutboxError(
            f"the outbox {folder} cannot be made: {error}; set emitter.outbox_dir to a folder of your own"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise OutboxInUseError(
            f"another process uses the outbox {folder}: stop it, or give this one a folder of its own"
        ) from error
    return lock
