"""The bytes of a log file, whatever it is compressed with, and how far the reading has come.

How a file is packed is told by its first bytes, not by its name. Everything is read in blocks of bounded size.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self, cast

from streams.events.schema import BOM, strip_line
from streams.importers.forms import find_fault

Kind = Literal["plain", "gzip", "zstd", "parquet"]

MAGIC: tuple[tuple[bytes, Kind], ...] = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"PAR1", "parquet"))
BLOCK_BYTES = 1 << 20
HEAD_BYTES = 64 << 10
"""The beginning of a file, by which its form is told."""
MAX_LINE_BYTES = 4 << 20
"""A longer line is cut here: no record holds it, and a file without line breaks must not fill the memory."""

COMPRESSED = (".gz", ".zst")
TABLES = (".csv", ".tsv")


class LogFileError(ValueError):
    """A log file that cannot be read; the text names the file and the line."""


class Source:
    """An opened log file: its kind, its decompressed bytes, its size on disk and the place of the reading in it.

    Use it in a `with` block. Opening raises LogFileError, also for a form that nothing here reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.line = 0
        with self.reporting():
            self.raw = path.open("rb")
        try:
            with self.reporting():
                self.size = path.stat().st_size
                self.kind = _kind_of(self.raw)
                self.head = b"" if self.kind == "parquet" else self._read_head()
            if fault := find_fault(self.head, packed=self.kind != "plain"):
                raise unreadable(path, self.kind, *fault)
        except BaseException:
            self.raw.close()
            raise

    def _read_head(self) -> bytes:
        """Return up to HEAD_BYTES of the decompressed file; of a pipe only what is there already, as it cannot be read twice."""
        if not self.raw.seekable():
            return self.raw.peek(HEAD_BYTES)[:HEAD_BYTES] if self.kind == "plain" else b""
        with self.path.open("rb") as raw:
            return _decompress(raw, self.kind).read(HEAD_BYTES)

    @property
    def position(self) -> int:
        """Bytes of the file read so far; 0 where it has no places (a pipe)."""
        return self.raw.tell() if self.raw.seekable() else 0

    def stream(self) -> IO[bytes]:
        """The file's bytes, decompressed."""
        return _decompress(self.raw, self.kind)

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines with their numbers from 1, without white space around them, no blank ones. Raises LogFileError.

        A line has no byte order mark in front either: files that are put one behind the other keep theirs in the middle."""
        for number, line in self.numbered_lines():
            if stripped := strip_line(line):
                yield number, stripped

    def numbered_lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield what is between line feeds with its number from 1, without a byte order mark. Raises LogFileError."""
        with self.reporting():
            for lines in _split_blocks(self.stream()):
                yield from enumerate(lines, self.line + 1)
                self.line += len(lines)

    def check_whole(self) -> None:
        """Read to the end. Raises LogFileError where the file was cut short."""
        with self.reporting():
            stream = self.stream()
            while stream.read(BLOCK_BYTES):
                pass

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Say of an error of the file system or of a decompressor which file and line it was."""
        try:
            yield
        except (OSError, EOFError, zlib.error) as error:
            where = f" after line {self.line}" if self.line else ""
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise LogFileError(f"{self.path}: cannot be read{where}: {reason}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and what reads from it."""
        self.raw.close()


def bare_name(path: Path) -> str:
    """The file's name without the suffix of its compression, which is no property of the log."""
    return path.stem if path.suffix in COMPRESSED else path.name


def unreadable(path: Path, kind: Kind, name: str, advice: str) -> LogFileError:
    """Return the error for a file in a form that nothing here reads; of a compressed one it is what the file holds."""
    file = path
    if kind != "plain" and "FILE" in advice:
        file, advice = path.with_name(bare_name(path)), f"decompress it, then {advice}"
    return LogFileError(f"{path} is {name}, which nothing here reads: {advice.replace('FILE', str(file))}")


def _decompress(raw: io.BufferedReader, kind: Kind) -> IO[bytes]:
    if kind == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    return _open_zstd(raw) if kind == "zstd" else raw


def _kind_of(raw: io.BufferedReader) -> Kind:
    head = raw.peek(4)
    return next((kind for magic, kind in MAGIC if head.startswith(magic)), "plain")


def _open_zstd(raw: io.BufferedReader) -> IO[bytes]:
    import pyarrow as pa

    return cast(IO[bytes], io.BufferedReader(_Arrow(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))))


class _Arrow(io.RawIOBase):
    """An Arrow stream as a raw Python file: only such a one can be buffered and read as text."""

    def __init__(self, stream: object) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        return int(self._stream.readinto(buffer))  # type: ignore[attr-defined]  # pyarrow has no types


def _split_blocks(stream: IO[bytes]) -> Iterator[list[bytes]]:
    """Yield what stands between line feeds, block by block; of a line over MAX_LINE_BYTES its beginning."""
    rest, cut, begun = b"", False, False
    while block := stream.read(BLOCK_BYTES if begun else max(BLOCK_BYTES, len(BOM))):
        block, begun = (block if begun else block.removeprefix(BOM)), True
        if cut:  # the rest of a line whose beginning is kept
            _, found, block = block.partition(b"\n")
            if not found:
                continue
            yield [rest]
            rest, cut = b"", False
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        yield lines
        if len(rest) > MAX_LINE_BYTES:
            rest, cut = rest[:MAX_LINE_BYTES], True
    if rest:
        yield [rest]
