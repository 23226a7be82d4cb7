"""The identity of a data folder: an id in a file, by which a command knows whether a process it asks works on the same folder.

A path is no identity: a folder may be mounted under two. Every answer of a worker, and of serving's /readyz, carries the id.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from streams.runtime.atomic_files import create_file

ID_HEADER = "Queryloop-Data-Id"
PATH_HEADER = "Queryloop-Data-Dir"


@dataclass(frozen=True, slots=True)
class DataFolder:
    """A data folder; `id` is None where no process has worked on it yet."""

    path: Path
    id: str | None

    def headers(self, *, with_path: bool) -> dict[str, str]:
        """Return the headers of an answer that name this folder; its path only for those who may know it."""
        named = {} if self.id is None else {ID_HEADER: self.id}
        return {**named, PATH_HEADER: quote(str(self.path))} if with_path else named

    def find_stranger(self, headers: Mapping[str, str]) -> str | None:
        """Return a sentence when an answer with these headers is of a process on another folder, else None."""
        other = headers.get(ID_HEADER)
        if other is None or other == self.id:
            return None
        where = unquote(headers[PATH_HEADER]) if PATH_HEADER in headers else f"id {other}"
        return f"it works on another data folder ({where}), the settings name {self.path}"


def open_data_folder(path: Path) -> DataFolder:
    """Return a data folder, which gets its id if it has none. Raises OSError where it cannot be written."""
    path.mkdir(parents=True, exist_ok=True)
    create_file(_id_file(path), uuid.uuid4().hex.encode() + b"\n")
    return find_data_folder(path)


def find_data_folder(path: Path) -> DataFolder:
    """Return a data folder as it is."""
    try:
        found = _id_file(path).read_text().strip() or None
    except (FileNotFoundError, NotADirectoryError):
        found = None
    return DataFolder(path.absolute(), found)


def _id_file(path: Path) -> Path:
    return path / "folder-id"
