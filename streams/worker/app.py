"""The Faust app of a worker: the agent that counts, and what it does beside: quarantine to its topic, mature days to the lake.

The agent never acknowledges to Kafka: the offsets that matter lie in the shards. When applying fails the app crashes, and the
process ends with an error; nothing after the failed batch is applied, and the next start reads it again.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
from typing import Any

import msgspec
from aiokafka.errors import KafkaError
from faust.exceptions import NotReady, ProducerSendError
from faust.types import TP

from streams.brokers.topics import KafkaSettings, topic_id
from streams.lake.files import open_lake
from streams.store.held_shards import HeldShards
from streams.store.shard import Shard
from streams.worker.lake_exporter import Exporter
from streams.worker.pipeline import Pipeline
from streams.worker.settings import StreamsSettings
from streams.worker.topic_watch import LogWatch
from streams.worker.transport import WorkerApp

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 1.0
EXPORT_EVERY_S = 5.0
PUBLISH_ROWS = 500
PUBLISHED_BYTES = 300_000
COLLECT_EVERY_S = 1.0
"""What is alive then is some 25,000 objects, and takes milliseconds."""
FETCH_BYTES = 1024 * 1024
"""Of a partition, at once: aiokafka holds a response of all of them several times over while it reads it."""
METADATA_MAX_AGE_MS = 10_000
RUNS_WAITING = 2
TEND_EVERY_S = 1.0
WATCH_EVERY_S = 10.0
RECORD_EVERY_S = 5.0


def make_app(settings: StreamsSettings, bootstrap: str, shards: HeldShards) -> WorkerApp:
    """Build the app: agent, timers, and what happens when partitions come and go."""
    log_watch = LogWatch(bootstrap, settings.kafka, shards)

    async def seek_offsets(assigned: set[TP], generation: int) -> dict[TP, int]:
        log_id = await asyncio.to_thread(topic_id, bootstrap, settings.kafka.topic)
        earliest = await app.consumer.earliest_offsets(*assigned)
        offsets = await shards.take({tp.partition: offset for tp, offset in earliest.items()}, log_id, generation)
        return {tp: offsets[tp.partition] for tp in assigned}

    app = WorkerApp(
        settings.kafka.group,
        seek_offsets=seek_offsets,
        is_same_log=log_watch.is_same,
        **faust_settings(settings, bootstrap),
    )
    _count_events(app, settings, shards)
    _tend_shards(app, settings, shards)
    _watch_log(app, settings.kafka, shards, log_watch)
    _collect_garbage(app)
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
        "consumer_metadata_max_age_ms": METADATA_MAX_AGE_MS,
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


def _count_events(app: WorkerApp, settings: StreamsSettings, shards: HeldShards) -> None:
    topic = app.topic(settings.kafka.topic, key_serializer="raw", value_serializer="raw", acks=False)

    async def fail(error: BaseException) -> None:
        log.error("event=apply_failed error=%r", error, exc_info=error)
        await app.crash(error)

    async def count(runs: Any) -> None:
        pipeline = Pipeline(shards, settings.events, fail, settings.worker.linger_ms / 1000)
        try:
            async for run in runs.noack():
                await pipeline.put(run)
        finally:
            await pipeline.close()

    app.agent(topic, name="count")(count)


def _watch_log(app: WorkerApp, kafka: KafkaSettings, shards: HeldShards, log_watch: LogWatch) -> None:
    recorded: dict[TP, int] = {}

    async def watch() -> None:
        if not await log_watch.is_same() and shards.totals():
            await app.consumer.perform_seek()

    async def record() -> None:
        await record_offsets(app, kafka.topic, shards, recorded)

    app.timer(WATCH_EVERY_S, name="watch-log")(watch)
    app.timer(RECORD_EVERY_S, name="record-offsets")(record)


async def record_offsets(app: WorkerApp, topic: str, shards: HeldShards, recorded: dict[TP, int]) -> None:
    """Tell Kafka's group the offsets that the shards hold, where they moved, for tools that look there. Nothing reads them."""
    held = {TP(topic, number): totals.written_offset for number, totals in shards.totals().items()}
    moved = {tp: offset for tp, offset in held.items() if offset is not None and recorded.get(tp) != offset}
    if not moved:
        return
    try:
        await app.record_offsets(moved)
    except KafkaError as error:
        log.info("event=offsets_not_recorded error=%r", error)
    else:
        recorded.update(moved)


def _collect_garbage(app: WorkerApp) -> None:
    """Let the collector come by the clock: a few cycles in the Kafka client hold buffers of megabytes, and it counts objects."""

    async def collect() -> None:
        gc.collect()

    app.timer(COLLECT_EVERY_S, name="collect-garbage")(collect)


def _tend_shards(app: WorkerApp, settings: StreamsSettings, shards: HeldShards) -> None:
    quarantine = app.topic(settings.kafka.quarantine_topic, key_serializer="raw", value_serializer="raw")

    exporter = Exporter(shards, open_lake(settings.data.dir, settings.lake), settings.lake)

    async def release(_: Any, /, *revoked: Any, **__: Any) -> None:
        await shards.release(tp.partition for tp in revoked[0])

    async def publish() -> None:
        for partition, totals in shards.totals().items():
            if totals.quarantined:
                await publish_quarantine(quarantine, partition, shards)

    async def tend() -> None:
        for partition in shards.totals():
            await shards.tend(partition)

    async def export() -> None:
        await exporter.export()

    app.on_partitions_revoked.connect(release, weak=False)
    app.timer(PUBLISH_EVERY_S, name="publish-quarantine")(publish)
    app.timer(EXPORT_EVERY_S, name="export-days")(export)
    app.timer(TEND_EVERY_S, name="tend")(tend)


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
