"""Asks the other workers over HTTP for the counts of the shards that they hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import aiohttp
import msgspec
from pydantic import SecretStr

from streams.store.shard_registry import Place, Places

log = logging.getLogger(__name__)

PEER_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0


class PeerError(RuntimeError):
    """Another worker refused a read for a reason that the caller should hear."""


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
