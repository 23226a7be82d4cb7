"""Where the lines of a log come from that ended in quarantine: found by reading the log once more."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from streams.emitter.record_batches import MAX_RECORD_BYTES
from streams.importers.log_files import LogFile, Place

if TYPE_CHECKING:
    from streams.importers.mapping import Mapping


def find_places(path: Path, mapping: Mapping | None, wanted: Set[bytes]) -> dict[bytes, Place]:
    """Return where each of these lines is first in the log; the reading ends with the last one. Raises LogFileError."""
    found: dict[bytes, Place] = {}
    if not wanted:
        return found
    with LogFile(path, mapping) as log:
        for line in log:
            sent = line[:MAX_RECORD_BYTES]
            if sent in wanted and sent not in found:
                found[sent] = log.place_of(line)
                if len(found) == len(wanted):
                    break
    return found
