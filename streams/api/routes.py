"""The HTTP routes of a worker, on Faust's web server: /status, /metrics, /healthz, /readyz and the reads under /v1.

With a key set, every route but /healthz and /readyz requires `Authorization: Bearer KEY`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, cast

import msgspec
from aiohttp import web
from faust.web.views import View as WebView
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from streams.api.endpoints import LAG, METRICS, READS, Read, answer_read, gather_parts
from streams.api.erasures import describe_erased, parse_erasure
from streams.api.exports import EXPORTS, FORMATS, Export, Format, OpenExport, discard_exports, open_export
from streams.api.fan_out import FanOut, PartitionsMissing, Parts, describe_totals
from streams.api.metrics import render_metrics
from streams.api.params import DatedParams, ParameterError, ReadParams, parse_params
from streams.api.peers import PARTITIONS_HEADER, PeerError
from streams.api.quarantine_drop import DropParams, drop_rows
from streams.api.quarantine_rows import EventStatesParams, RowsParams, dump_event_states, dump_rows
from streams.api.reads import TooManyRows
from streams.api.snapshot import dump_counts
from streams.runtime.data_folder import find_data_folder
from streams.store.readers import ReadersBusy

if TYPE_CHECKING:
    import faust
    from pydantic import SecretStr

    from streams.store.shard import Shard


View = Callable[..., Awaitable[Any]]
RETRY_AFTER_S = 1
CHUNK_BYTES = 1024 * 1024
MISSING_HEADER = "Queryloop-Missing"
"""The header of a partial export that lists the partitions that no worker answered for."""


def add_routes(app: faust.App, key: SecretStr | None, fan_out: FanOut, is_stopping: Callable[[], bool] = lambda: False) -> None:
    """Add the worker's routes to Faust's web server; with a `key`, all but /healthz and /readyz require it.

    /readyz answers 200 while reads have every shard, this worker's and those of the others. `is_stopping` returns whether the
    worker is about to end, which /healthz and /readyz then say. Every answer names the worker's data folder, its path only to
    those who have the key.
    """
    _name_data_folder(app, key, fan_out)
    _add_health(app, fan_out, is_stopping)
    _add_exports(app, key, fan_out)
    _add_changes(app, key, fan_out)
    views = _process_views(fan_out) | _shard_views(fan_out) | {read.path: _view_of(fan_out, read) for read in READS}
    for path, view in views.items():
        app.page(path, name=path)(_guarded(key, view))


def _name_data_folder(app: faust.App, key: SecretStr | None, fan_out: FanOut) -> None:
    folder = find_data_folder(fan_out.shards.data_dir)

    async def name_folder(request: web.Request, answer: web.StreamResponse) -> None:
        answer.headers.update(folder.headers(with_path=authorised(key, request.headers)))

    web_app: web.Application = cast("Any", app.web).web_app
    web_app.on_response_prepare.append(name_folder)


def _add_health(app: faust.App, fan_out: FanOut, is_stopping: Callable[[], bool]) -> None:
    def read_state() -> str:
        return "crashed" if app.crashed else "stopping" if is_stopping() else "ok"

    async def healthz(page: Any, request: Any) -> Any:
        state = read_state()
        return page.text(state, status=200 if state == "ok" else 503)

    async def readyz(page: Any, request: Any) -> Any:
        missing = (await gather_parts(fan_out, LAG, ReadParams(partial=True))).missing
        ready = read_state() == "ok" and not missing
        return _json({"ready": ready, "state": read_state(), "missing": missing}, 200 if ready else 503)

    app.page("/healthz")(healthz)
    app.page("/readyz")(readyz)


def _add_exports(app: faust.App, key: SecretStr | None, fan_out: FanOut) -> None:
    discard_exports(fan_out)
    turn = asyncio.Lock()
    for export, (name, form) in product(EXPORTS, FORMATS.items()):
        path = f"/v1/{export.name}.{name}"
        app.page(path, name=path)(_guarded(key, _export_view(fan_out, export, form, turn)))


def _add_changes(app: faust.App, key: SecretStr | None, fan_out: FanOut) -> None:
    """Add the routes that change a shard, each by POST alone."""

    async def drop(page: Any, request: Any, partition: str) -> Any:
        number, params = _read_partition(fan_out, partition), parse_params(DropParams, request.query.items())
        change = partial(drop_rows, data_dir=fan_out.shards.data_dir, partition=number, params=params)
        dropped = await fan_out.shards.call(number, change)
        if dropped is None:
            return _json({"error": f"this worker does not hold partition {number}"}, 404)
        return _json({"dropped": dropped})

    async def erase(page: Any, request: Any, partition: str) -> Any:
        wanted = parse_erasure(await request.read())
        erased = await fan_out.shards.erase(_read_partition(fan_out, partition), wanted.subject, wanted.dry_run)
        if erased is None:
            return _json({"error": f"this worker does not hold partition {partition}"}, 404)
        return _json(describe_erased(erased))

    for name, change_shard in {"quarantine/drop": drop, "erase": erase}.items():
        path = f"/v1/shards/{{partition}}/{name}"
        app.page(path, name=path)(type("Change", (WebView,), {"post": _guarded(key, change_shard)}))


def _process_views(fan_out: FanOut) -> dict[str, View]:
    async def status(page: Any, request: Any) -> Any:
        return _json(worker_status(fan_out))

    async def metrics(page: Any, request: Any) -> Any:
        params = parse_params(ReadParams, request.query.items()).model_copy(update={"partial": True})
        if params.local:
            parts = Parts(await METRICS.parts(fan_out, params, fan_out.partitions))
        else:
            parts = await gather_parts(fan_out, METRICS, params)
        # In a thread: 64 partitions take 20 to 40 ms, in which this loop would fetch and answer nothing.
        body = await asyncio.to_thread(render_metrics, parts.found, parts.missing)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    return {"/status": status, "/metrics": metrics}


def _shard_views(fan_out: FanOut) -> dict[str, View]:
    async def counts(page: Any, request: Any, partition: str) -> Any:
        return await _send_dump(fan_out, request, partition, dump_counts, "application/vnd.apache.arrow.stream")

    async def quarantine(page: Any, request: Any, partition: str) -> Any:
        params = parse_params(RowsParams, request.query.items())
        return await _send_dump(fan_out, request, partition, lambda shard: dump_rows(shard, params), "application/json")

    async def event_states(page: Any, request: Any, partition: str) -> Any:
        params = parse_params(EventStatesParams, request.query.items())
        return await _send_dump(fan_out, request, partition, lambda shard: dump_event_states(shard, params), "application/json")

    base = "/v1/shards/{partition}"
    return {f"{base}/counts": counts, f"{base}/quarantine": quarantine, f"{base}/standing": event_states}


def authorised(key: SecretStr | None, headers: Mapping[str, str]) -> bool:
    """Return whether a request may be answered: it has the worker's key, or the worker needs none."""
    if key is None:
        return True
    wanted = f"Bearer {key.get_secret_value()}".encode()
    # aiohttp reads bytes that are no UTF-8 as lone surrogates.
    return hmac.compare_digest(headers.get("Authorization", "").encode("utf-8", "surrogateescape"), wanted)


def _view_of(fan_out: FanOut, read: Read) -> View:
    async def view(page: Any, request: Any) -> Any:
        return _json(await answer_read(fan_out, read, parse_params(read.params, request.query.items())))

    return view


def _export_view(fan_out: FanOut, export: Export, form: Format, turn: asyncio.Lock) -> View:
    """Return a view that sends an export; `turn` is taken by one at a time, but not by what other workers ask."""

    async def view(page: Any, request: Any) -> Any:
        params = parse_params(DatedParams, request.query.items())
        async with nullcontext() if params.local else take_turn(turn), open_export(fan_out, export, form, params) as opened:
            return await _send_export(request, opened, form)

    return view


@asynccontextmanager
async def take_turn(turn: asyncio.Lock, patience_s: float = RETRY_AFTER_S) -> AsyncIterator[None]:
    """Hold the turn. Raises ReadersBusy where another export holds it longer than that: one that was just received has its parts
    still to remove, and who reads one export after the other must not be refused for it."""
    try:
        await asyncio.wait_for(turn.acquire(), patience_s)
    except TimeoutError:
        raise ReadersBusy("another export is being sent; ask again later") from None
    try:
        yield
    finally:
        turn.release()


async def _send_export(request: Any, opened: OpenExport, form: Format) -> web.StreamResponse:
    """Send an export as its bytes are made; an error on the way breaks the connection, so that no client takes a part for all."""
    lists = {PARTITIONS_HEADER: opened.partitions, MISSING_HEADER: opened.missing}
    chunk = await asyncio.to_thread(next, opened.chunks, None)  # before the status: an error here is answered as one
    headers = {name: ",".join(map(str, numbers)) for name, numbers in lists.items() if numbers}
    answer = web.StreamResponse(headers={"Content-Type": form.content_type, **headers})
    await answer.prepare(request)
    while chunk is not None:
        await answer.write(chunk)
        chunk = await asyncio.to_thread(next, opened.chunks, None)
    await answer.write_eof()
    return answer


def _guarded(key: SecretStr | None, view: View) -> View:
    """Return a view that requires the key and answers every expected error as JSON."""

    async def guarded(page: Any, request: Any, **path: str) -> Any:
        if not authorised(key, request.headers):
            return _json({"error": "set the header Authorization: Bearer KEY"}, 401)
        try:
            return await view(page, request, **path)
        except (ParameterError, TooManyRows, PeerError) as error:
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


async def _send_dump(
    fan_out: FanOut, request: Any, partition: str, dump: Callable[[Shard], bytes], content_type: str
) -> web.StreamResponse:
    """Send a dump of one shard; 307 to its holder if another worker holds the shard, 404 if none is known to hold it."""
    number = _read_partition(fan_out, partition)
    body = await fan_out.shards.readers.read_shard(number, dump)
    if body is None:
        holder = next(iter(fan_out.peers.registry.find_others([number])), None)
        if holder is None or request.query.get("local") == "true":
            return _json({"error": f"no worker holds partition {number}"}, 404)
        raise web.HTTPTemporaryRedirect(f"{holder.url}{request.rel_url.update_query(local='true')}")
    answer = web.StreamResponse(headers={"Content-Type": content_type})
    answer.content_length = len(body)
    await answer.prepare(request)
    for start in range(0, len(body), CHUNK_BYTES):
        await answer.write(body[start : start + CHUNK_BYTES])
    await answer.write_eof()
    return answer


def _read_partition(fan_out: FanOut, text: str) -> int:
    if not text.isdecimal() or int(text) not in fan_out.partitions:
        raise ParameterError(f"partition: a number from 0 to {len(fan_out.partitions) - 1}")
    return int(text)


def worker_status(fan_out: FanOut) -> dict[str, Any]:
    """Return the body of /status: the worker's name and data folder, its number of new topics, the totals of each shard it holds.

    `waiting` are the shards that another process has open, with what DuckDB says about that process.
    """
    shards = fan_out.shards.totals()
    return {
        "worker": fan_out.name,
        "data_dir": str(fan_out.shards.data_dir.absolute()),
        "new_topics": fan_out.shards.new_topics,
        "waiting": [{"partition": number, "error": why} for number, why in sorted(fan_out.shards.waiting.items())],
        "shards": [describe_totals(partition, totals) for partition, totals in sorted(shards.items())],
    }
