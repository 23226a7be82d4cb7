"""A worker's own HTTP (Faust's web server): /status, /metrics, /healthz and the live reads under /v1.

With a key set, all but /healthz want `Authorization: Bearer KEY`; /healthz tells nothing and wants none.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from streams.api.endpoints import METRICS, READS, Read, answer_call, gather_parts
from streams.api.fan_out import LiveReads, PartitionsMissing, describe_account
from streams.api.metrics import render_metrics
from streams.api.params import Call, CallError, read_call
from streams.api.peers import PeerError
from streams.api.quarantine_rows import RepairError, dump_rows, dump_standing, read_rows_call, read_standing_call
from streams.api.reads import TooManyRows
from streams.api.snapshot import dump_counts
from streams.store.readers import ReadersBusy

if TYPE_CHECKING:
    import faust
    from pydantic import SecretStr

    from streams.store.shard import Shard

log = logging.getLogger(__name__)

View = Callable[..., Awaitable[Any]]
RETRY_AFTER_S = 1
CHUNK_BYTES = 1024 * 1024


def add_pages(app: faust.App, key: SecretStr | None, live: LiveReads) -> None:
    """Add the worker's pages to Faust's web server; with a `key`, all but /healthz ask for it."""

    async def status(page: Any, request: Any) -> Any:
        return _json(worker_status(live))

    async def metrics(page: Any, request: Any) -> Any:
        call = read_call(Call, request.query.items()).model_copy(update={"partial": True})
        held = await METRICS.parts(live, call, live.all) if call.local else None
        parts = held if held is not None else (found := await gather_parts(live, METRICS, call)).found
        body = render_metrics(parts, [] if held is not None else found.missing)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def counts(page: Any, request: Any, partition: str) -> Any:
        return await _send_whole(live, request, partition, dump_counts, "application/vnd.apache.arrow.stream")

    async def quarantine(page: Any, request: Any, partition: str) -> Any:
        call = read_rows_call(request.query)
        return await _send_whole(live, request, partition, lambda shard: dump_rows(shard, call), "application/json")

    async def standing(page: Any, request: Any, partition: str) -> Any:
        call = read_standing_call(request.query)
        return await _send_whole(live, request, partition, lambda shard: dump_standing(shard, call), "application/json")

    async def healthz(page: Any, request: Any) -> Any:
        return page.text("crashed" if app.crashed else "ok", status=503 if app.crashed else 200)

    app.page("/healthz")(healthz)
    for path, view in (("/status", status), ("/metrics", metrics)):
        app.page(path, name=path)(_guarded(key, view))
    for name, whole in (("counts", counts), ("quarantine", quarantine), ("standing", standing)):
        path = f"/v1/shards/{{partition}}/{name}"
        app.page(path, name=path)(_guarded(key, whole))
    for read in READS:
        app.page(read.path, name=read.path)(_guarded(key, _view_of(live, read)))


def authorised(key: SecretStr | None, headers: Mapping[str, str]) -> bool:
    """Whether a request carries the worker's key, where it has one."""
    if key is None:
        return True
    wanted = f"Bearer {key.get_secret_value()}".encode()
    return hmac.compare_digest(headers.get("Authorization", "").encode(), wanted)


def _view_of(live: LiveReads, read: Read) -> View:
    async def view(page: Any, request: Any) -> Any:
        return _json(await answer_call(live, read, read_call(read.call, request.query.items())))

    return view


def _guarded(key: SecretStr | None, view: View) -> View:
    """The view behind the key, with every expected error as a JSON answer."""

    async def guarded(page: Any, request: Any, **path: str) -> Any:
        if not authorised(key, request.headers):
            return _json({"error": "set the header Authorization: Bearer KEY"}, 401)
        try:
            return await view(page, request, **path)
        except (CallError, RepairError, TooManyRows, PeerError) as error:
            return _json({"error": str(error)}, 400)
        except PartitionsMissing as error:
            about = f"{error}; ask again, or with partial=true for the others"
            return _json({"error": about, "missing": error.partitions}, 503)
        except ReadersBusy as error:
            return _json({"error": str(error)}, 503)

    return guarded


def _json(value: Any, status: int = 200) -> web.Response:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers)


async def _send_whole(
    live: LiveReads, request: Any, partition: str, dump: Callable[[Shard], bytes], content_type: str
) -> web.StreamResponse:
    """Send what one shard dumps; 307 to the worker that holds it where another does, 404 where none is known to."""
    if not partition.isdecimal() or int(partition) not in live.all:
        raise CallError(f"partition: a number from 0 to {len(live.all) - 1}")
    body = await live.shards.readers.read_whole(int(partition), dump)
    if body is None:
        places = live.peers.places.others([int(partition)])
        url = next((f"{place.url}{request.path_qs}" for place in places), None)
        if url is None or request.query.get("local") == "true":
            return _json({"error": f"no worker holds partition {int(partition)}"}, 404)
        raise web.HTTPTemporaryRedirect(f"{url}{'&' if request.query_string else '?'}local=true")
    answer = web.StreamResponse(headers={"Content-Type": content_type})
    answer.content_length = len(body)
    await answer.prepare(request)
    for start in range(0, len(body), CHUNK_BYTES):
        await answer.write(body[start : start + CHUNK_BYTES])
    await answer.write_eof()
    return answer


def worker_status(live: LiveReads) -> dict[str, Any]:
    """The account of a worker as /status tells it: of the shards that it holds; `latest_ts` is in seconds."""
    shards = live.shards.totals()
    return {
        "worker": live.name,
        "new_topics": live.shards.new_topics,
        "shards": [describe_account(partition, totals) for partition, totals in sorted(shards.items())],
    }
