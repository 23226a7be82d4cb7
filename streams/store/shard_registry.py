"""Which worker holds which shard: each says so in a file for each shard it holds.

The file is a hint: the lock on the shard decides who holds it. One that is stale names a worker that does not answer, or that
answers without the shard, which is then missing.
"""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from streams.runtime.atomic_files import replace_file


@dataclass(frozen=True, slots=True)
class Place:
    """The worker that holds a shard: its name, the address of its HTTP, its process id on its machine."""

    worker: str
    url: str
    pid: int


def find_url(host: str, port: int) -> str:
    """The address under which others reach an HTTP that listens on `host`."""
    if host in ("", "0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Places:
    """The files data/run/shards/<partition>.json."""

    def __init__(self, data_dir: Path, mine: Place) -> None:
        self.mine = mine
        self._folder = data_dir / "run" / "shards"

    def write(self, partition: int) -> None:
        """Say that this worker holds a shard."""
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._path(partition), json.dumps(asdict(self.mine)).encode(), durable=False, shared=True)

    def remove(self, partition: int) -> None:
        """Say that this worker does not hold a shard any more; what its next holder wrote stays."""
        if self.read(partition) == self.mine:
            self._path(partition).unlink(missing_ok=True)

    def read(self, partition: int) -> Place | None:
        """Where a shard lives, None when nobody said so."""
        try:
            return Place(**json.loads(self._path(partition).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def others(self, partitions: Iterable[int]) -> dict[Place, list[int]]:
        """The other workers that hold some of these shards, with which."""
        found: dict[Place, list[int]] = defaultdict(list)
        for partition in partitions:
            if (place := self.read(partition)) is not None and place != self.mine:
                found[place].append(partition)
        return dict(found)

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition}.json"
