"""The daemon's HTTP: /metrics for Prometheus, with `timetable.key` where it is set, and /healthz."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from streams.runtime.metric_families import read_process
from streams.runtime.processes import describe_busy_port, port_is_free
from trainers.jobs.metrics import render_metrics

if TYPE_CHECKING:
    from aiohttp import web
    from pydantic import SecretStr

    from trainers.jobs.timetable import DueTimes, TimetableSettings

METRICS, HEALTH = "/metrics", "/healthz"


class PortBusy(OSError):
    """The address cannot be listened on; the text names it and the setting."""


def read_metrics(due_times: DueTimes, data_dir: Path, clock: Callable[[], float] = time.time) -> bytes:
    """Return the metrics of the ledger and the timetable as they are now."""
    now = clock()
    due = {kind: due_times.next(kind, datetime.fromtimestamp(now, UTC)) for kind in due_times.kinds()}
    return render_metrics(due_times.ledger.count_runs(), due, read_process(data_dir), now)


def make_app(key: SecretStr | None, read: Callable[[], bytes], lives: Callable[[], bool]) -> web.Application:
    """Return the application. /metrics answers what `read` returns, /healthz 200 while the heartbeat `lives`, else 503."""
    from aiohttp import web
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

    wanted = None if key is None else f"Bearer {key.get_secret_value()}".encode()

    async def metrics(request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if wanted is not None and not hmac.compare_digest(given, wanted):
            return web.json_response({"error": "set the header Authorization: Bearer KEY"}, status=401)
        return web.Response(body=await asyncio.to_thread(read), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def health(request: web.Request) -> web.Response:
        alive = await asyncio.to_thread(lives)
        return web.Response(text="ok" if alive else "no heartbeat", status=200 if alive else 503)

    app = web.Application()
    app.add_routes([web.get(METRICS, metrics), web.get(HEALTH, health)])
    return app


@asynccontextmanager
async def listening(app: web.Application, settings: TimetableSettings) -> AsyncIterator[tuple[str, int]]:
    """Serve the application during the block; yields its address. Raises PortBusy."""
    from aiohttp import web

    if settings.port and not port_is_free(settings.host, settings.port):
        raise PortBusy(f"{describe_busy_port(settings.host, settings.port)}: stop what runs there, or set timetable.port")
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        host, port = runner.addresses[0][:2]
        yield host, port
    finally:
        await runner.cleanup()
