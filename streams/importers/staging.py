"""The files of a foreign log as DuckDB reads them: by a link, or rewritten without the rows that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from streams.events.schema import strip_line
from streams.importers.formats import Part
from streams.importers.forms import is_object
from streams.importers.sources import LogFileError, Source, bare_name
from streams.importers.tables import Refuse, convert_table
from streams.importers.unmapped import encode_unmapped

ENDINGS = {"gzip": ".gz", "zstd": ".zst"}
REFUSED = "refused.ndjson"


@dataclass(frozen=True)
class StagedFile:
    """A file of a log, a link to it and where it goes when it has to be rewritten.

    A link has a plain name: DuckDB takes a path for a pattern or an address, and its ending for the compression.
    """

    path: Path
    link: Path
    rewritten: Path


def stage_files(parts: Sequence[Part], folder: Path) -> list[StagedFile]:
    """Link the files of a log into a folder."""
    files = []
    for number, part in enumerate(parts):
        link = folder / f"{number:06}.{part.format}{ENDINGS.get(part.kind, '')}"
        link.symlink_to(part.path.absolute())
        files.append(StagedFile(part.path, link, folder / f"{number:06}.rewritten"))
    return files


def rewrite_tables(files: Sequence[StagedFile], folder: Path) -> None:
    """Write each table as Parquet; its rows that cannot be read are in the folder's file REFUSED, as lines to send."""
    with (folder / REFUSED).open("wb") as refused:
        for file in files:
            convert_table(file.path, file.rewritten, _writer(refused, file))


def rewrite_lines(files: Sequence[StagedFile], folder: Path) -> int:
    """Write the lines of NDJSON that hold an object; return how many do not: those are in REFUSED. Raises LogFileError."""
    kept = lost = 0
    with (folder / REFUSED).open("wb") as refused:
        for file in files:
            refuse = _writer(refused, file)
            with Source(file.path) as source, file.rewritten.open("wb") as good:
                for number, line in source.numbered_lines():
                    stripped = strip_line(line)
                    if is_object(stripped):
                        kept += 1
                        good.write(stripped + b"\n")
                    elif stripped:
                        lost += 1
                        refuse(number, line, "not a JSON object")
    if not kept:
        hint = "if it is a table, end its name in .csv or .tsv"
        raise LogFileError(f"{files[0].path}: none of its lines is a JSON object; {hint}")
    return lost


def _writer(refused: IO[bytes], file: StagedFile) -> Refuse:
    name = bare_name(file.path)

    def write(number: int, content: bytes, error: str) -> None:
        refused.write(encode_unmapped(name, number, content, error) + b"\n")

    return write
