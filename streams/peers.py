"""Where the shards live: each worker says so in a file for each shard it holds, and asks the others for theirs over HTTP.

The file is a hint: the lock on the shard decides who holds it. One that is stale names a worker that does not answer, or that
answers without the shard, which is then missing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from pydantic import SecretStr

log = logging.getLogger(__name__)

PEER_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0


class PeerError(RuntimeError):
    """Another worker refused a read for a reason that the caller should hear."""


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
        path = self._path(partition)
        beside = path.with_suffix(f".{os.getpid()}.new")
        beside.write_text(json.dumps(asdict(self.mine)))
        beside.replace(path)

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


class Peers:
    """Asks other workers for the parts of their shards. Call `close` in the loop that asked."""

    def __init__(self, places: Places, key: SecretStr | None) -> None:
        self.places = places
        self._headers = {} if key is None else {"Authorization": f"Bearer {key.get_secret_value()}"}
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, path: str, parameters: Mapping[str, Any], partitions: Iterable[int]) -> dict[int, Any]:
        """Return the parts that the others have of these shards; a worker that does not answer gives none. Raises PeerError."""
        calls = [self._ask_one(place, path, parameters, numbers) for place, numbers in self.places.others(partitions).items()]
        return {partition: part for parts in await asyncio.gather(*calls) for partition, part in parts.items()}

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask_one(self, place: Place, path: str, parameters: Mapping[str, Any], partitions: list[int]) -> dict[int, Any]:
        wanted = {**parameters, "local": "true", "partitions": ",".join(map(str, partitions))}
        try:
            async with self._open().get(place.url + path, params=wanted, headers=self._headers, allow_redirects=False) as answer:
                status, body = answer.status, await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("event=peer_silent worker=%s partitions=%s error=%r", place.worker, partitions, error)
            return {}
        return _read_parts(place, status, body)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=PEER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=limits)
        return self._session


def _read_parts(place: Place, status: int, body: bytes) -> dict[int, Any]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        answer = {}
    if status == 400:
        raise PeerError(f"worker {place.worker}: {answer.get('error', 'refused the read')}")
    if status != 200 or answer.get("worker") != place.worker:
        log.warning("event=peer_refused worker=%s status=%d", place.worker, status)
        return {}
    return {int(partition): part for partition, part in answer["parts"].items()}
