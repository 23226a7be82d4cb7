"""Files and folders that are replaced in one step: written under a temporary name in the same folder, then renamed.

A reader, also after a kill, finds the old content or the new one. Temporary names begin with a dot: readers of Parquet folders
skip such names.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PART = ".part"
"""The end of the hidden names of folders that are being filled."""


def replace_file(path: Path, content: bytes, *, durable: bool, shared: bool = False) -> None:
    """Replace a file by `content` in one step; `durable` and `shared` as in `replacing_file`."""
    with replacing_file(path, durable=durable, shared=shared) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing_file(path: Path, *, durable: bool, shared: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file to write, and move it over `path` when the block ends.

    An exception in the block leaves `path` as it was and no temporary file; the next writer overwrites one that a kill left. With
    `durable` the new content survives a loss of power from then on. With `shared` several processes may replace the file at the
    same time: each has a temporary file of its own.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing" if shared else f".{path.name}.writing")
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the error raised below says what is wrong; a failing disk may refuse this too
            temporary.unlink()
        raise
    if durable:
        sync(path.parent)


def create_file(path: Path, content: bytes) -> None:
    """Write a file if there is none; of several processes that do so at once one succeeds, and none sees a part of it."""
    if path.exists():
        return
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".writing", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)  # other users read it, as they do the files beside it
        sync(temporary)
        with suppress(FileExistsError):  # another process was first
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; make it durable and rename it to `path` when the block ends.

    An exception in the block leaves no folder; one that a kill left is removed by the next call for the same `path`.
    """
    temporary = path.with_name(f".{path.name}{PART}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for entry in (*temporary.rglob("*"), temporary):
            sync(entry)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a loss of power (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
