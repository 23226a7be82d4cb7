"""The shard registry: which worker holds which shard, one file per shard, written by its holder.

An entry is a hint; the lock on the shard's file decides who holds it. A stale entry names a worker that does not answer, or that
answers without the shard; the shard then counts as missing.
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
class ShardHolder:
    """The worker that holds a shard: its name, the URL of its HTTP, its process id on its machine."""

    worker: str
    url: str
    pid: int


def http_url(host: str, port: int) -> str:
    """Return http://host:port, an IPv6 address in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def advertised_url(host: str, port: int) -> str:
    """Return the URL at which other machines reach an HTTP server that listens on `host`."""
    return http_url(socket.gethostname() if host in ("", "0.0.0.0", "::") else host, port)


class ShardRegistry:
    """The files data/run/shards/<partition>.json; `own` is the entry of the worker that adds and removes, None to only read."""

    def __init__(self, data_dir: Path, own: ShardHolder | None = None) -> None:
        self.own = own
        self.data_dir = data_dir
        self._folder = data_dir / "run" / "shards"

    def add(self, partition: int) -> None:
        """Register this worker as the holder of a shard."""
        assert self.own is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._path(partition), json.dumps(asdict(self.own)).encode(), durable=False, shared=True)

    def remove(self, partition: int) -> None:
        """Remove this worker's entry for a shard; an entry that the next holder wrote stays."""
        if self.find(partition) == self.own:
            self._path(partition).unlink(missing_ok=True)

    def find(self, partition: int) -> ShardHolder | None:
        """Return the registered holder of a shard, None without a readable entry."""
        try:
            return ShardHolder(**json.loads(self._path(partition).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def find_others(self, partitions: Iterable[int]) -> dict[ShardHolder, list[int]]:
        """Return the other workers that hold some of these shards, each with its partitions."""
        found: dict[ShardHolder, list[int]] = defaultdict(list)
        for partition in partitions:
            if (holder := self.find(partition)) is not None and holder != self.own:
                found[holder].append(partition)
        return dict(found)

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition}.json"
