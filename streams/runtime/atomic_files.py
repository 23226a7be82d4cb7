"""Files and folders that appear whole: written beside their place, then moved over it in one step.

A reader, and whoever starts after a kill, finds the old content or the new one. The name beside begins with a dot: readers of
Parquet folders skip such names.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_file(path: Path, content: bytes, *, durable: bool, shared: bool = False) -> None:
    """Replace a file by `content` in one step; `durable` and `shared` as in `replacing_file`."""
    with replacing_file(path, durable=durable, shared=shared) as beside:
        beside.write_bytes(content)


@contextmanager
def replacing_file(path: Path, *, durable: bool, shared: bool = False) -> Iterator[Path]:
    """Yield the path of a file to write in the same folder, and move it over `path` when the block ends.

    An exception in the block leaves `path` as it was and nothing beside it; what a kill leaves is overwritten by the next writer.
    With `durable` the new content survives a loss of power from then on. With `shared` several processes may replace the file at
    the same time: each writes under a name of its own.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.writing" if shared else f".{path.name}.writing")
    try:
        yield beside
        if durable:
            sync(beside)
        beside.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error says what is wrong; a full disk may refuse this too
            beside.unlink()
        raise
    if durable:
        sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; make it durable and rename it to `path` when the block ends.

    An exception in the block leaves nothing; what a kill left is removed by the next call for the same `path`.
    """
    beside = path.with_name(f".{path.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        for entry in (*beside.rglob("*"), beside):
            sync(entry)
        beside.rename(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a loss of power (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
