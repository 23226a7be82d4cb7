"""Segments: the files of an outbox. Each is a sequence of frames of event lines, appended and never changed.

A frame is a header (bytes of the payload, CRC-32 of all that follows it, number of its first line, how many lines) and the
payload: the lines and their sessions. The checksum shows a frame that a crash or a full disk left half written. Reading goes on
at the next whole frame after it, so that damage costs the frames it hit and no other.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from streams.emitter.record_batches import Line

HEADER = struct.Struct("<IIQI")
_CHECKSUMMED = struct.Struct("<QI")
MAX_PAYLOAD = 1 << 28
SUFFIX = ".log"
_HEADER_LIKE = re.compile(rb"(?s)(?=.{13}\0{3}(?!\0\0).{2}\0\0)")
"""Where a header may begin: the high bytes of its first number are zero, and it has 1 to 65,535 lines."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[list[str], list[bytes]])


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a frame lies in its file (bytes), and the numbers of its lines."""

    offset: int
    size: int
    first: int
    lines: int

    @property
    def next(self) -> int:
        return self.first + self.lines


@dataclass(slots=True)
class Segment:
    """One file. `first` is the number of its first line, `next` the one after its last; `closed_at`: epoch seconds or None."""

    path: Path
    first: int
    next: int
    lines: int = 0
    size: int = 0
    closed_at: float | None = None


def segment_path(folder: Path, first: int) -> Path:
    """Return the path of the segment that begins with line `first`; names sort in the order of the segments."""
    return folder / f"{first:020d}{SUFFIX}"


def encode_frame(first: int, lines: Sequence[Line]) -> bytes:
    """Return the bytes of one frame."""
    payload = _encoder.encode(([one.session_id for one in lines], [one.line for one in lines]))
    checked = _CHECKSUMMED.pack(first, len(lines))
    return HEADER.pack(len(payload), zlib.crc32(payload, zlib.crc32(checked)), first, len(lines)) + payload


def read_frames(path: Path, offset: int = 0, *, check: bool = True) -> Iterator[Frame]:
    """Yield the frames of a file from `offset` on, skipping damaged bytes; without `check` only headers are looked at."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        while (frame := _read_frame(file, offset, end, check) or _find_next_frame(file, offset + 1, end)) is not None:
            yield frame
            offset = frame.offset + frame.size


def _read_frame(file: BinaryIO, offset: int, end: int, check: bool) -> Frame | None:
    """Return the frame at `offset`, None when there is no whole one."""
    if offset + HEADER.size > end:
        return None
    file.seek(offset)
    size, crc, first, lines = HEADER.unpack(file.read(HEADER.size))
    if size > MAX_PAYLOAD or offset + HEADER.size + size > end or lines == 0:
        return None
    if check and _checksum(file.read(size), first, lines) != crc:
        return None
    return Frame(offset, HEADER.size + size, first, lines)


def _find_next_frame(file: BinaryIO, offset: int, end: int) -> Frame | None:
    """Return the first frame at `offset` or later whose checksum is right, None without one."""
    if offset + HEADER.size > end:
        return None
    file.seek(offset)
    places = (offset + found.start() for found in _HEADER_LIKE.finditer(file.read(end - offset)))
    return next((frame for place in places if (frame := _read_frame(file, place, end, True)) is not None), None)


def load_frame(path: Path, frame: Frame, emitted_at: float) -> list[Line] | None:
    """Return the lines of a frame with the time `emitted_at`, None when its checksum is wrong."""
    with path.open("rb") as file:
        file.seek(frame.offset)
        data = file.read(frame.size)
    size, crc, first, lines = HEADER.unpack_from(data)
    payload = data[HEADER.size :]
    if len(payload) != size or _checksum(payload, first, lines) != crc:
        return None
    sessions, texts = _decoder.decode(payload)
    return [Line(text, session, emitted_at) for text, session in zip(texts, sessions, strict=True)]


def _checksum(payload: bytes, first: int, lines: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKSUMMED.pack(first, lines)))
