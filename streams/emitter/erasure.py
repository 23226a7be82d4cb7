"""Erasure of a session or a user from outboxes: the lines that a process of the product has kept on disk, delivered or not."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from streams.emitter.record_batches import Line
from streams.emitter.segments import SUFFIX, encode_frame, load_frame, read_frames
from streams.events.erasures import Subject, read_owner
from streams.runtime.atomic_files import replacing_file


class ErasedLines(NamedTuple):
    """The lines removed, and the folders that a running process uses, which were left as they are."""

    lines: int
    in_use: list[Path]


def find_outboxes(folder: Path) -> list[Path]:
    """Return this folder and the folders below it that are outboxes, sorted."""
    return sorted({path.parent for path in folder.rglob("lock") if path.is_file()})


def erase_from_outboxes(folders: list[Path], subject: Subject, dry_run: bool = False) -> ErasedLines:
    """Remove a subject's lines from outboxes that no process uses. Raises OSError.

    Each file is replaced in one step. The numbers of removed lines are skipped, so the mark of what is delivered stays true.
    """
    lines, in_use = 0, list[Path]()
    for folder in folders:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines += sum(_erase_segment(path, subject, dry_run) for path in sorted(folder.glob(f"*{SUFFIX}")))
        except BlockingIOError:
            in_use.append(folder)
        finally:
            os.close(lock)
    return ErasedLines(lines, in_use)


def _erase_segment(path: Path, subject: Subject, dry_run: bool) -> int:
    """Write a segment anew without the subject's lines, and return how many these were."""
    frames = list(read_frames(path))
    lines = [(frame.first + place, line) for frame in frames for place, line in enumerate(load_frame(path, frame, 0.0) or ())]
    kept = [(number, line) for number, line in lines if not subject.owns(read_owner(line.line))]
    if len(kept) < len(lines) and not dry_run:
        with replacing_file(path, durable=True) as temporary:
            temporary.write_bytes(b"".join(encode_frame(first, run) for first, run in _find_runs(kept)))
    return len(lines) - len(kept)


def _find_runs(numbered: list[tuple[int, Line]]) -> Iterator[tuple[int, list[Line]]]:
    """Yield lines with consecutive numbers together, with the first number."""
    for _, group in groupby(enumerate(numbered), key=lambda one: one[1][0] - one[0]):
        run = [pair for _, pair in group]
        yield run[0][0], [line for _, line in run]
