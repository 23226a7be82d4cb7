"""The Faust app of a worker: the agent that counts, and what it does beside: quarantine to its topic, mature days to the lake.

The agent never acknowledges to Kafka: the offsets that matter lie in the shards. When applying fails the app crashes, and the
process ends with an error; nothing after the failed run is applied, and the next start reads it again.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import TYPE_CHECKING, Any

import msgspec
from aiokafka.errors import KafkaError
from faust.exceptions import NotReady, ProducerSendError
from faust.types import TP

from streams.shards import HeldShards
from streams.store import Shard
from streams.topics import KafkaSettings, topic_id
from streams.transport import Run, WorkerApp

if TYPE_CHECKING:
    from streams.worker import StreamsSettings

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 1.0
EXPORT_EVERY_S = 5.0
PUBLISH_ROWS = 500
PUBLISHED_BYTES = 300_000
FETCH_BYTES = 4 * 1024 * 1024
RUN_RECORDS = 20_000
RUNS_WAITING = 4


def make_app(settings: StreamsSettings, bootstrap: str, shards: HeldShards) -> WorkerApp:
    """Build the app: agent, timers, and what happens when partitions come and go."""

    async def seek_offsets(assigned: set[TP]) -> dict[TP, int]:
        return await find_offsets(app, bootstrap, settings.kafka.topic, assigned, shards)

    app = WorkerApp(settings.kafka.group, seek_offsets=seek_offsets, **faust_settings(settings, bootstrap))
    _count_events(app, settings.kafka, shards)
    _tend_shards(app, settings, shards)
    return app


def faust_settings(settings: StreamsSettings, bootstrap: str) -> dict[str, Any]:
    """Faust's settings: quick to start, bounded in memory, static membership, nothing written outside the data folder."""
    worker, kafka = settings.worker, settings.kafka
    return {
        "broker": [f"kafka://{address}" for address in bootstrap.split(",")],
        "store": "memory://",
        "datadir": str(settings.data.dir / "run" / "faust"),
        "autodiscover": False,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "consumer_auto_offset_reset": "earliest",
        "consumer_group_instance_id": worker.name if worker.static else None,
        "consumer_max_fetch_size": FETCH_BYTES,
        "broker_max_poll_records": RUN_RECORDS,
        "broker_session_timeout": kafka.session_timeout_s,
        "broker_request_timeout": max(90.0, 2 * kafka.session_timeout_s),
        "broker_heartbeat_interval": 0.3,
        "broker_rebalance_timeout": 5.0,
        "stream_wait_empty": False,
        "stream_buffer_maxsize": RUNS_WAITING,
        "web_bind": worker.host,
        "web_host": worker.host,
        "web_port": worker.port,
        "web_router_enabled": False,
        "web_tables_enabled": False,
    }


async def find_offsets(app: WorkerApp, bootstrap: str, topic: str, assigned: set[TP], shards: HeldShards) -> dict[TP, int]:
    """Where to read each assigned partition from: what its shard says, if that is about the log that is there now."""
    log_id = await asyncio.to_thread(topic_id, bootstrap, topic)
    earliest = await app.consumer.earliest_offsets(*assigned)
    offsets = await shards.take({tp.partition: offset for tp, offset in earliest.items()}, log_id)
    return {tp: offsets[tp.partition] for tp in assigned}


def _count_events(app: WorkerApp, kafka: KafkaSettings, shards: HeldShards) -> None:
    topic = app.topic(kafka.topic, key_serializer="raw", value_serializer="raw", acks=False)

    async def count(runs: Any) -> None:
        async for run in runs.noack():
            await _apply(app, shards, run)

    app.agent(topic, name="count")(count)


async def _apply(app: WorkerApp, shards: HeldShards, run: Run) -> None:
    if app.crashed:  # Faust restarts an agent that raised: it must not go on
        return
    try:
        await shards.apply(run)
    except Exception as error:
        log.exception("event=apply_failed partition=%d offset=%d records=%d", run.partition, run.first_offset, len(run.records))
        await app.crash(error)
        raise


def _tend_shards(app: WorkerApp, settings: StreamsSettings, shards: HeldShards) -> None:
    quarantine = app.topic(settings.kafka.quarantine_topic, key_serializer="raw", value_serializer="raw")

    async def release(_: Any, /, *revoked: Any, **__: Any) -> None:
        await shards.release(tp.partition for tp in revoked[0])

    async def publish() -> None:
        for partition, totals in shards.totals().items():
            if totals.quarantined:
                await publish_quarantine(quarantine, partition, shards)

    async def export() -> None:
        await shards.export_mature(settings.lake)

    app.on_partitions_revoked.connect(release, weak=False)
    app.timer(PUBLISH_EVERY_S, name="publish-quarantine")(publish)
    app.timer(EXPORT_EVERY_S, name="export-days")(export)


async def publish_quarantine(topic: Any, partition: int, shards: HeldShards) -> None:
    """Send a shard's unpublished quarantine rows to the quarantine topic, at least once, and mark them once Kafka has them.

    While the broker is away, or Faust has not started its producer yet, they wait in the shard.
    """
    rows = await shards.call(partition, _unpublished)
    if not rows:
        return
    try:
        for sent in [await topic.send(key=None, value=quarantine_record(row, partition)) for row in rows]:
            await sent
    except (KafkaError, NotReady, ProducerSendError) as error:
        log.warning("event=quarantine_waits partition=%d rows=%d error=%r", partition, len(rows), error)
        return
    ids = [row["id"] for row in rows]
    await shards.call(partition, lambda shard: shard.mark_published(ids))
    log.info("event=quarantine_published partition=%d rows=%d", partition, len(rows))


def _unpublished(shard: Shard) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = shard.unpublished(PUBLISH_ROWS).to_pylist()
    return rows


def quarantine_record(row: dict[str, Any], partition: int) -> bytes:
    """A quarantine row as one JSON object: event_id, reason, detail, ts (seconds), partition, offset, line, and the original.

    The line is `raw` where it is printable text, else `raw_base64`; of a longer one the first 300,000 bytes with `truncated`.
    """
    raw: bytes = row["raw"][:PUBLISHED_BYTES]
    text = raw.decode("utf-8", "replace")
    record = {key: row[key] for key in ("event_id", "reason", "detail", "line")}
    record |= {"partition": partition, "offset": row["log_offset"], "truncated": len(raw) < len(row["raw"])}
    record["ts"] = None if row["ts_us"] is None else row["ts_us"] / 1_000_000
    readable = text.isprintable() and text.encode() == raw
    record |= {"raw": text} if readable else {"raw_base64": base64.b64encode(raw).decode()}
    return msgspec.json.encode(record)
