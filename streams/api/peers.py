"""The asynchronous HTTP client between workers: it asks the others for their shards' parts of a read."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from streams.api.client import key_header, read_error, read_object, with_query
from streams.runtime.data_folder import find_data_folder
from streams.store.shard_registry import ShardHolder, ShardRegistry

log = logging.getLogger(__name__)

PEER_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 2.0
EXPORT_TIMEOUT_S = 60.0
"""Seconds without a byte of an export: the other worker reads its shards before it sends the first."""
DOWNLOAD_BYTES = 1 << 20
PARTITIONS_HEADER = "Queryloop-Partitions"
"""The header of an export that lists the partitions in it."""


class PeerError(RuntimeError):
    """Another worker refused a read because of its parameters; the text names the worker and the reason."""


class Peers:
    """Asks other workers for their shards' parts of a read. Call `close` in the event loop that called `ask`."""

    def __init__(self, registry: ShardRegistry, key: SecretStr | None) -> None:
        self.registry = registry
        self._headers = key_header(key)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, path: str, parameters: Mapping[str, Any], partitions: Iterable[int]) -> dict[int, Any]:
        """Return the other workers' parts of these shards; without those of workers that do not answer. Raises PeerError."""
        calls = [
            self._ask_one(holder, path, parameters, numbers) for holder, numbers in self.registry.find_others(partitions).items()
        ]
        return {partition: part for parts in await asyncio.gather(*calls) for partition, part in parts.items()}

    async def download(
        self, path: str, parameters: Mapping[str, Any], partitions: Iterable[int], folder: Path
    ) -> dict[Path, frozenset[int]]:
        """Write the other workers' parts of an export to files; return each with its partitions, without those not answered."""
        calls = [
            self._download_one(holder, path, parameters, numbers, folder / f"from-{place}")
            for place, (holder, numbers) in enumerate(self.registry.find_others(partitions).items())
        ]
        return {file: found for file, found in await asyncio.gather(*calls) if found}

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask_one(
        self, holder: ShardHolder, path: str, parameters: Mapping[str, Any], partitions: list[int]
    ) -> dict[int, Any]:
        local = {**parameters, "local": "true", "partitions": ",".join(map(str, partitions))}
        url = with_query(holder.url + path, local)
        try:
            async with self._open().get(url, headers=self._headers, allow_redirects=False) as answer:
                status, body = answer.status, await answer.read()
                if self._is_stranger(holder, answer.headers):
                    return {}
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("event=peer_silent worker=%s partitions=%s error=%r", holder.worker, partitions, error)
            return {}
        return _read_parts(holder, status, body)

    async def _download_one(
        self, holder: ShardHolder, path: str, parameters: Mapping[str, Any], partitions: list[int], file: Path
    ) -> tuple[Path, frozenset[int]]:
        local = {**parameters, "local": "true", "partitions": ",".join(map(str, partitions))}
        url = with_query(holder.url + path, local)
        limits = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=EXPORT_TIMEOUT_S)
        try:
            async with self._open().get(url, headers=self._headers, allow_redirects=False, timeout=limits) as answer:
                if self._is_stranger(holder, answer.headers):
                    return file, frozenset()
                if answer.status != HTTPStatus.OK or PARTITIONS_HEADER not in answer.headers:
                    log.warning("event=peer_refused worker=%s status=%d", holder.worker, answer.status)
                    return file, frozenset()
                with await asyncio.to_thread(file.open, "wb") as target:
                    async for chunk in answer.content.iter_chunked(DOWNLOAD_BYTES):
                        await asyncio.to_thread(target.write, chunk)
                return file, frozenset(map(int, answer.headers[PARTITIONS_HEADER].split(",")))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.warning("event=peer_silent worker=%s partitions=%s error=%r", holder.worker, partitions, error)
            return file, frozenset()

    def _is_stranger(self, holder: ShardHolder, headers: Mapping[str, str]) -> bool:
        """Return whether an answer is of a process on another data folder: the port of a stale entry may be its now."""
        stranger = find_data_folder(self.registry.data_dir).find_stranger(headers)
        if stranger:
            log.warning("event=peer_stale worker=%s url=%s error=%r", holder.worker, holder.url, stranger)
        return stranger is not None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=PEER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=limits)
        return self._session


def _read_parts(holder: ShardHolder, status: int, body: bytes) -> dict[int, Any]:
    if status == HTTPStatus.BAD_REQUEST:
        raise PeerError(f"worker {holder.worker}: {read_error(body)}")
    answer = read_object(body) or {}
    if status != HTTPStatus.OK or answer.get("worker") != holder.worker:
        log.warning("event=peer_refused worker=%s status=%d", holder.worker, status)
        return {}
    return {int(partition): part for partition, part in answer["parts"].items()}
