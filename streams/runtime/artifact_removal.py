"""Removes published folders in steps of which none shows a folder that lacks some of its files, also after a kill.

A folder is first renamed to a hidden name, so that nobody finds it any more; who has its files open or mapped goes on reading
them. Then its files are deleted, and at last its manifest is moved to `.pruned` beside it, which needs no space on a full disk.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from streams.runtime.artifacts import MANIFEST
from streams.runtime.atomic_files import PART, sync

HIDDEN = ".removed"
RECORDS = ".pruned"


def hide(path: Path) -> Path:
    """Rename a published folder to its hidden name and return that; it survives a loss of power from then on."""
    hidden = path.with_name(f".{path.name}{HIDDEN}")
    path.rename(hidden)
    sync(path.parent)
    return hidden


def delete(hidden: Path) -> None:
    """Delete the files of a hidden folder, and keep its manifest as `.pruned/<id>.json` (`find_record`)."""
    manifest = hidden / MANIFEST
    for entry in list(hidden.iterdir()):
        if entry != manifest:
            delete_tree(entry)
    if manifest.exists():
        record = find_record(hidden.with_name(hidden.name.removeprefix(".").removesuffix(HIDDEN)))
        record.parent.mkdir(exist_ok=True)
        manifest.rename(record)
        sync(record.parent)
    hidden.rmdir()
    sync(hidden.parent)


def delete_tree(path: Path) -> None:
    """Delete a file, or a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def find_record(path: Path) -> Path:
    """Return where the manifest of the folder that was published at `path` is kept after its removal."""
    return path.parent / RECORDS / f"{path.name}.json"


def list_hidden(root: Path) -> list[Path]:
    """Return the hidden folders below root/<kind> whose removal was begun."""
    return sorted(root.glob(f"*/.*{HIDDEN}"))


def list_unfinished(root: Path) -> list[Path]:
    """Return the folders below root/<kind> that are being filled, or were when their process was killed."""
    return sorted(root.glob(f"*/.*{PART}"))
