"""A worker's Faust app: the agent that counts, and timers that publish quarantine rows, export mature days and maintain shards.

The agent acknowledges no message to Kafka: the offsets that count are in the shards. When an apply fails the app crashes and the
process ends with an error; nothing after the failed batch is applied, and the next start reads that batch again.
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

from streams.brokers.failures import explain_reason
from streams.brokers.topics import KafkaSettings, TopicUnfit, describe_topic
from streams.lake.files import open_lake
from streams.store.held_shards import HeldShards
from streams.store.shard import Shard
from streams.worker.credentials import make_credentials
from streams.worker.lake_exporter import LakeExporter
from streams.worker.pipeline import Pipeline
from streams.worker.settings import StreamsSettings
from streams.worker.topic_watch import TopicWatch
from streams.worker.transport import WorkerApp
from streams.worker.waiting_shards import take_waiting_shards

log = logging.getLogger(__name__)

PUBLISH_EVERY_S = 1.0
EXPORT_EVERY_S = 5.0
PUBLISH_ROWS = 500
PUBLISHED_BYTES = 300_000
GC_EVERY_S = 1.0
"""Seconds between two garbage collections, each of some 25,000 objects and a few milliseconds."""
FETCH_BYTES = 1024 * 1024
"""Fetched at once per partition: aiokafka holds a response of all partitions several times over while it reads it."""
METADATA_MAX_AGE_MS = 10_000
MAX_BUFFERED_RUNS = 2
MAINTAIN_EVERY_S = 1.0
TOPIC_CHECK_EVERY_S = 10.0
COMMIT_EVERY_S = 5.0


def make_app(settings: StreamsSettings, bootstrap: str, shards: HeldShards) -> WorkerApp:
    """Return the app with its agent, its timers and its handlers for assigned and revoked partitions."""
    address = settings.kafka.at(bootstrap)
    topic_watch = TopicWatch(address, shards)

    async def seek_offsets(assigned: set[TP], generation: int) -> dict[TP, int]:
        topic = await asyncio.to_thread(describe_topic, address, settings.kafka.topic)
        topic.check(settings.kafka.partitions)
        earliest = await app.consumer.earliest_offsets(*assigned)
        offsets = await shards.assign({tp.partition: offset for tp, offset in earliest.items()}, topic.topic_id, generation)
        return {tp: offsets[tp.partition] for tp in assigned if tp.partition in offsets}

    app = WorkerApp(
        settings.kafka.group,
        seek_offsets=seek_offsets,
        is_same_topic=topic_watch.is_same,
        **faust_settings(settings, bootstrap),
    )
    _count_events(app, settings, shards)
    _maintain_shards(app, settings, shards)
    _watch_topic(app, settings.kafka, shards, topic_watch)
    _collect_garbage(app)
    take_waiting_shards(app, shards)
    return app


def faust_settings(settings: StreamsSettings, bootstrap: str) -> dict[str, Any]:
    """Return Faust's settings: a quick start, bounded memory, static membership, no files outside the data folder."""
    worker, kafka = settings.worker, settings.kafka
    return {
        "broker": [f"kafka://{address}" for address in bootstrap.split(",")],
        "broker_credentials": make_credentials(kafka),
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
        "stream_buffer_maxsize": MAX_BUFFERED_RUNS,
        "web_bind": worker.host,
        "web_host": worker.host,
        "web_port": worker.port,
        "web_router_enabled": False,
        "web_tables_enabled": False,
    }


def _count_events(app: WorkerApp, settings: StreamsSettings, shards: HeldShards) -> None:
    topic = app.topic(settings.kafka.topic, key_serializer="raw", value_serializer="raw", acks=False)

    async def crash(error: BaseException) -> None:
        log.error("event=apply_failed error=%r", error, exc_info=error)
        await app.crash(error)

    async def count(runs: Any) -> None:
        pipeline = Pipeline(shards, settings.events, crash, settings.worker.linger_ms / 1000)
        try:
            async for run in runs.noack():
                await pipeline.put(run)
        finally:
            await pipeline.close()

    app.agent(topic, name="count")(count)


def _watch_topic(app: WorkerApp, kafka: KafkaSettings, shards: HeldShards, topic_watch: TopicWatch) -> None:
    committed: dict[TP, int] = {}

    async def watch() -> None:
        try:
            if not await topic_watch.is_same() and shards.totals():
                await app.consumer.perform_seek()
        except TopicUnfit as error:
            await app.crash(error)

    async def commit() -> None:
        await commit_offsets(app, kafka.topic, shards, committed)

    app.timer(TOPIC_CHECK_EVERY_S, name="watch-topic")(watch)
    app.timer(COMMIT_EVERY_S, name="commit-offsets")(commit)


async def commit_offsets(app: WorkerApp, topic: str, shards: HeldShards, committed: dict[TP, int]) -> None:
    """Commit the shards' written offsets to the consumer group, where they differ from `committed`, which is updated.

    Only monitoring tools read them there; the worker reads on from the offsets in the shards.
    """
    written = {TP(topic, number): totals.written_offset for number, totals in shards.totals().items()}
    moved = {tp: offset for tp, offset in written.items() if offset is not None and committed.get(tp) != offset}
    if not moved:
        return
    try:
        await app.commit_offsets(moved)
    except KafkaError as error:
        log.info("event=offsets_not_recorded error=%r", error)
    else:
        committed.update(moved)


def _collect_garbage(app: WorkerApp) -> None:
    """Collect garbage by the clock: cycles in the Kafka client hold megabytes in few objects, and Python counts objects."""

    async def collect() -> None:
        gc.collect()

    app.timer(GC_EVERY_S, name="collect-garbage")(collect)


def _maintain_shards(app: WorkerApp, settings: StreamsSettings, shards: HeldShards) -> None:
    quarantine = app.topic(settings.kafka.quarantine_topic, key_serializer="raw", value_serializer="raw")

    exporter = LakeExporter(shards, open_lake(settings.data.dir, settings.lake), settings.lake)

    async def release(_: Any, /, *revoked: Any, **__: Any) -> None:
        await shards.release(tp.partition for tp in revoked[0])

    async def publish() -> None:
        for partition, totals in shards.totals().items():
            if totals.quarantined:
                await publish_quarantine(quarantine, partition, shards, settings.kafka)

    async def maintain() -> None:
        for partition in shards.totals():
            await shards.maintain(partition)

    async def export() -> None:
        await exporter.export()

    app.on_partitions_revoked.connect(release, weak=False)
    app.timer(PUBLISH_EVERY_S, name="publish-quarantine")(publish)
    app.timer(EXPORT_EVERY_S, name="export-days")(export)
    app.timer(MAINTAIN_EVERY_S, name="maintain")(maintain)


async def publish_quarantine(topic: Any, partition: int, shards: HeldShards, kafka: KafkaSettings) -> None:
    """Send a shard's unpublished quarantine rows to the quarantine topic, at least once, and mark those that Kafka has.

    While the broker is unreachable, or Faust has not started its producer yet, they wait in the shard.
    """
    rows = await shards.call(partition, _read_unpublished)
    if not rows:
        return
    try:
        for sent in [await topic.send(key=None, value=quarantine_record(row, partition)) for row in rows]:
            await sent
    except (KafkaError, NotReady, ProducerSendError) as error:
        reason = explain_reason(error, kafka)
        log.warning("event=quarantine_waits partition=%d rows=%d reason=%r", partition, len(rows), reason)
        return
    ids = [row["id"] for row in rows]
    await shards.call(partition, lambda shard: shard.mark_published(ids))
    log.info("event=quarantine_published partition=%d rows=%d", partition, len(rows))


def _read_unpublished(shard: Shard) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = shard.unpublished(PUBLISH_ROWS).to_pylist()
    return rows


def quarantine_record(row: dict[str, Any], partition: int) -> bytes:
    """Return a quarantine row as a JSON object: event_id, reason, detail, ts (seconds), partition, offset, line, and the bytes.

    The original bytes are in `raw` if they are printable text, else in `raw_base64`; of more than 300,000 bytes only the first
    are there, and `truncated` is true.
    """
    raw: bytes = row["raw"][:PUBLISHED_BYTES]
    text = raw.decode("utf-8", "replace")
    record = {key: row[key] for key in ("event_id", "reason", "detail", "line")}
    record |= {"partition": partition, "offset": row["log_offset"], "truncated": len(raw) < len(row["raw"])}
    record["ts"] = None if row["ts_us"] is None else row["ts_us"] / 1_000_000
    is_text = text.isprintable() and text.encode() == raw
    record |= {"raw": text} if is_text else {"raw_base64": base64.b64encode(raw).decode()}
    return msgspec.json.encode(record)
