"""Records of every codec are counted and verified, on every broker; records that cannot be unpacked end the worker for good."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import crc32c
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

from queryloop.up.worker_process import WorkerProcess, read_progress, read_status
from queryloop.verify.topic_reader import TopicReadError, open_partition
from streams.brokers.broker import Broker, EmbeddedBroker
from streams.brokers.topics import create_topics
from streams.emitter.emitter import Emitter
from streams.runtime.environment import to_environ
from streams.runtime.processes import free_port
from streams.worker.settings import StreamsSettings
from tests.support.logs import START, query

ROOT = Path(__file__).resolve().parents[2]
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]
APPLIED_S = 60.0


def make_settings(bootstrap: str, unique: str, data_dir: Path) -> StreamsSettings:
    names = {"topic": unique, "quarantine_topic": f"{unique}.quarantine", "group": unique}
    return StreamsSettings.model_validate(
        {
            "data": {"dir": data_dir},
            "kafka": {"bootstrap": bootstrap, **names, "partitions": 1, "session_timeout_s": 6},
            "worker": {"port": free_port(), "retention_days": 0},
            "lake": {"maturity_floor_s": 0},
        }
    )


def send(bootstrap: str, topic: str, codec: str | None, number: int) -> None:
    """Send an event as another producer would, in a batch of its own."""

    async def produce() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type=codec) as producer:
            await producer.send_and_wait(topic, query(f"e{number}", START + number, "the same words " * 20), partition=0)

    asyncio.run(produce())


def mislabel(codec: int) -> bytes:
    """Return a batch of one record with a valid checksum, whose header names a codec that its bytes are not in."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    builder.append(0, timestamp=1_600_000_000_000, key=None, value=query("bad", START, "q"), headers=[])
    batch = bytearray(builder.build())
    batch[22] |= codec
    batch[17:21] = crc32c.crc32c(bytes(batch[21:])).to_bytes(4, "big")
    return bytes(batch)


def send_raw(bootstrap: str, topic: str, batch: bytes) -> None:
    """Send a batch as it is."""

    async def produce() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
            wrapper = producer.create_batch()
            wrapper.append(key=None, value=b"", timestamp=None)
            wrapper.close()
            wrapper._build = lambda: batch
            wrapper._builder = SimpleNamespace(build=lambda: batch)
            await (await producer.send_batch(wrapper, topic, partition=0))

    asyncio.run(produce())


def run(settings: StreamsSettings, *command: str) -> subprocess.CompletedProcess[str]:
    environ = to_environ(settings, {**os.environ, "PYTHONPATH": str(ROOT)})
    return subprocess.run([sys.executable, "-m", *command], env=environ, capture_output=True, text=True, timeout=90, check=False)


def test_every_codec_is_counted_and_verified(broker: Broker, unique: str, tmp_path: Path) -> None:
    settings = make_settings(broker.bootstrap, unique, tmp_path / "data")
    create_topics(broker.bootstrap, settings.kafka)
    for number, codec in enumerate(CODECS):
        send(broker.bootstrap, unique, codec, number)
    if not isinstance(broker, EmbeddedBroker):  # which has no settings of topics
        with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, unique, {"compression.type": "zstd"})])
    with Emitter(broker.bootstrap, topic=unique) as sender:
        sender.emit_line(query("last", START + 9, "q"), "s1")
        assert sender.flush(30)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        worker.child.wait_until(lambda: read_progress(settings)[1] == len(CODECS) + 1, APPLIED_S, "all applied")
        assert (read_status(settings) or {})["shards"][0]["counted"] == len(CODECS) + 1
        verified = run(settings, "queryloop", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_records_that_cannot_be_unpacked_end_worker_and_verify_with_their_place(
    embedded_broker: Broker, unique: str, tmp_path: Path
) -> None:
    settings = make_settings(embedded_broker.bootstrap, unique, tmp_path / "data")
    create_topics(embedded_broker.bootstrap, settings.kafka)
    send(embedded_broker.bootstrap, unique, None, 0)
    send_raw(embedded_broker.bootstrap, unique, mislabel(4))
    ended = run(settings, "streams")
    assert ended.returncode == 65, ended.stderr[-2000:]
    said = ended.stderr.splitlines()[-1]
    assert f"topic {unique}, partition 0, offset 1" in said and "DecompressionError" in said
    with open_partition(embedded_broker.bootstrap, unique, 0) as reader:
        found = reader.read(2)
        assert next(found)[0] == 0
        with pytest.raises(TopicReadError, match=f"topic {unique}, partition 0, offset 1"):
            next(found)
