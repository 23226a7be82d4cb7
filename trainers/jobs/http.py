"""The daemon's HTTP: /metrics for Prometheus, with `timetable.key` where it is set, and /healthz."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from streams.runtime.processes import describe_busy_port, port_is_free

if TYPE_CHECKING:
    from aiohttp import web
    from pydantic import SecretStr

METRICS, HEALTH = "/metrics", "/healthz"


class PortBusy(OSError):
    """The address cannot be listened on; the text names it and the setting."""


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
async def listening(app: web.Application, host: str, port: int) -> AsyncIterator[tuple[str, int]]:
    """Serve the application during the block, on any free port if it is 0; yields its address. Raises PortBusy."""
    from aiohttp import web

    if port and not port_is_free(host, port):
        raise PortBusy(f"{describe_busy_port(host, port)}: stop what runs there, or set timetable.port")
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][0], runner.addresses[0][1]
    finally:
        await runner.cleanup()
