"""Segments: the files of an outbox. Each holds frames of event lines, appended and never changed.

A frame is a header (bytes of the payload, CRC-32 of all that follows it, number of its first line, how many lines) and the
payload: the lines and their sessions. What a crash left half written fails its checksum and is recognised.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streams.emitter.record_batches import Line

HEADER = struct.Struct("<IIQI")
_CHECKED = struct.Struct("<QI")
MAX_PAYLOAD = 1 << 28
SUFFIX = ".log"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[list[str], list[bytes]])


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a frame stands in its file, and which lines it holds."""

    offset: int
    size: int
    first: int
    lines: int

    @property
    def next(self) -> int:
        return self.first + self.lines


@dataclass(slots=True)
class Segment:
    """One file. `first` is its first line's number, `next` the one after its last; `closed_at`: epoch seconds, or open."""

    path: Path
    first: int
    next: int
    lines: int = 0
    size: int = 0
    closed_at: float | None = None


def segment_path(folder: Path, first: int) -> Path:
    """The file of the segment that begins with line `first`; names sort as the segments follow each other."""
    return folder / f"{first:020d}{SUFFIX}"


def encode_frame(first: int, lines: Sequence[Line]) -> bytes:
    """The bytes of one frame."""
    payload = _encoder.encode(([one.session_id for one in lines], [one.line for one in lines]))
    checked = _CHECKED.pack(first, len(lines))
    return HEADER.pack(len(payload), zlib.crc32(payload, zlib.crc32(checked)), first, len(lines)) + payload


def read_frames(path: Path, offset: int = 0, *, check: bool = False) -> Iterator[Frame]:
    """Yield the frames of a file in order, up to the first that is not whole; with `check`, whose checksum is wrong too."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        file.seek(offset)
        while offset + HEADER.size <= end:
            size, crc, first, lines = HEADER.unpack(file.read(HEADER.size))
            if size > MAX_PAYLOAD or offset + HEADER.size + size > end or lines == 0:
                return
            if check and _checksum(file.read(size), first, lines) != crc:
                return
            yield Frame(offset, HEADER.size + size, first, lines)
            offset += HEADER.size + size
            file.seek(offset)


def load_frame(path: Path, frame: Frame, at: float) -> list[Line] | None:
    """The lines of a frame, as emitted at `at`; None when its bytes are not those that were written."""
    with path.open("rb") as file:
        file.seek(frame.offset)
        data = file.read(frame.size)
    size, crc, first, lines = HEADER.unpack_from(data)
    payload = data[HEADER.size :]
    if len(payload) != size or _checksum(payload, first, lines) != crc:
        return None
    sessions, texts = _decoder.decode(payload)
    return [Line(text, session, at) for text, session in zip(texts, sessions, strict=True)]


def _checksum(payload: bytes, first: int, lines: int) -> int:
    return zlib.crc32(payload, zlib.crc32(_CHECKED.pack(first, lines)))
