"""A corpus: the events of one run, a file for each partition, so that all contestants read the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.traffic import Line
from streams.emitter.record_batches import partition_of


@dataclass(frozen=True)
class Corpus:
    """A folder with the lines of each partition, and how many there are."""

    folder: Path
    partitions: int
    events: int
    bytes: int

    def file(self, partition: int) -> Path:
        """The NDJSON file of a partition, in log order."""
        return corpus_file(self.folder, partition)

    @property
    def bytes_an_event(self) -> float:
        """Mean length of a line in bytes."""
        return self.bytes / self.events


def corpus_file(folder: Path, partition: int) -> Path:
    """The NDJSON file of a partition."""
    return folder / f"events-{partition}.ndjson"


def write_corpus(lines: Iterable[Line], partitions: int, folder: Path) -> Corpus:
    """Write lines to the files of their partitions (by murmur2 of the session, as the emitter does)."""
    folder.mkdir(parents=True, exist_ok=True)
    events = size = 0
    with ExitStack() as stack:
        files = [stack.enter_context(corpus_file(folder, one).open("wb", 1 << 20)) for one in range(partitions)]
        for line in lines:
            files[partition_of(line.session_id, partitions)].write(line.text + b"\n")
            events += 1
            size += len(line.text)
    return Corpus(folder, partitions, events, size)
