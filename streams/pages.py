"""A worker's own HTTP (Faust's web server): GET /status, /metrics, /healthz.

With a key set, /status and /metrics want `Authorization: Bearer KEY`; /healthz tells nothing and wants none.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streams.shards import HeldShards
from streams.store import ShardTotals

if TYPE_CHECKING:
    from streams.transport import WorkerApp
    from streams.worker import WorkerSettings

METRICS = {
    "events": "Events read from the log, of every outcome",
    "counted": "Events counted",
    "duplicates": "Events delivered more than once, or impressions and clicks that repeat another",
    "pending": "Clicks that wait for their impression",
}


def add_pages(app: WorkerApp, worker: WorkerSettings, shards: HeldShards) -> None:
    """Add the worker's pages to Faust's web server."""

    async def status(page: Any, request: Any) -> Any:
        if not authorised(worker, request.headers):
            return page.json({"error": "set the header Authorization: Bearer KEY"}, status=401)
        return page.json(worker_status(worker.name, shards.totals()))

    async def metrics(page: Any, request: Any) -> Any:
        if not authorised(worker, request.headers):
            return page.text("set the header Authorization: Bearer KEY", status=401)
        return page.text(render_metrics(shards.totals()))

    async def healthz(page: Any, request: Any) -> Any:
        return page.text("crashed" if app.crashed else "ok", status=503 if app.crashed else 200)

    for path, view in (("/status", status), ("/metrics", metrics), ("/healthz", healthz)):
        app.page(path)(view)


def authorised(worker: WorkerSettings, headers: Mapping[str, str]) -> bool:
    """Whether a request carries the worker's key, where it has one."""
    if worker.key is None:
        return True
    wanted = f"Bearer {worker.key.get_secret_value()}".encode()
    return hmac.compare_digest(headers.get("Authorization", "").encode(), wanted)


def worker_status(name: str, shards: Mapping[int, ShardTotals]) -> dict[str, Any]:
    """The account of a worker as /status tells it; `latest_ts` is in seconds."""
    return {"worker": name, "shards": [shard_status(partition, totals) for partition, totals in sorted(shards.items())]}


def shard_status(partition: int, totals: ShardTotals) -> dict[str, Any]:
    """The account of one shard: events = counted + duplicates + sum of quarantined + pending."""
    return {
        "partition": partition,
        "topic_id": totals.topic_id,
        "next_offset": totals.next_offset,
        "latest_ts": None if totals.latest_us is None else totals.latest_us / 1_000_000,
        "events": totals.events,
        "counted": totals.counted,
        "duplicates": totals.duplicates,
        "quarantined": dict(totals.quarantined),
        "pending": totals.pending,
        "days_exported": [day.isoformat() for day in totals.days_exported],
    }


def render_metrics(shards: Mapping[int, ShardTotals]) -> str:
    """The same account in Prometheus's text format."""
    lines: list[str] = []
    for name, about in METRICS.items():
        lines += [f"# HELP queryloop_{name} {about}", f"# TYPE queryloop_{name} gauge"]
        lines += [f'queryloop_{name}{{partition="{p}"}} {getattr(totals, name)}' for p, totals in sorted(shards.items())]
    lines += ["# HELP queryloop_quarantined Events in quarantine, by reason", "# TYPE queryloop_quarantined gauge"]
    for p, totals in sorted(shards.items()):
        lines += [f'queryloop_quarantined{{partition="{p}",reason="{r}"}} {n}' for r, n in totals.quarantined.items()]
    lines += ["# HELP queryloop_latest_event_seconds Latest event time seen", "# TYPE queryloop_latest_event_seconds gauge"]
    for p, totals in sorted(shards.items()):
        if totals.latest_us is not None:
            lines.append(f'queryloop_latest_event_seconds{{partition="{p}"}} {totals.latest_us / 1_000_000:.6f}')
    return "\n".join(lines) + "\n"
