"""The worker process: it counts the partitions assigned to it until it is stopped or fails.

python -m streams --config queryloop.toml
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING

from streams.brokers.connection import client_options
from streams.brokers.failures import explain, explain_reason
from streams.brokers.topics import TopicError, TopicUnfit, check_group, create_topics, describe_topic
from streams.runtime.clocks import choose_clock
from streams.runtime.data_folder import open_data_folder
from streams.runtime.processes import describe_busy_port, port_is_free
from streams.store.counted_log import claim_log
from streams.worker.settings import StreamsSettings

if TYPE_CHECKING:
    from streams.api.fan_out import FanOut
    from streams.api.peers import Peers
    from streams.store.held_shards import HeldShards
    from streams.store.progress import LogEnd
    from streams.store.shard_registry import ShardRegistry
    from streams.worker.transport import WorkerApp

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 20.0
SWITCH_INTERVAL_S = 0.0005
GC_THRESHOLD = (200_000, 20, 100)


class WorkerError(RuntimeError):
    """The worker cannot start or continue; the text says why and what to do."""


class UnreadableLog(WorkerError):
    """The log holds records that cannot be read: starting the worker again does not help, a person has to."""


def run_worker(settings: StreamsSettings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises WorkerError when it cannot start or has failed, UnreadableLog at unreadable records, SettingsError for another log.
    """
    bootstrap = settings.kafka.bootstrap
    if not bootstrap:
        raise WorkerError(
            "kafka.bootstrap is not set: start a broker (`queryloop broker`, or all of it: `queryloop up`) and name it"
        )
    worker = settings.worker
    if not port_is_free(worker.host, worker.port):
        raise WorkerError(f"{describe_busy_port(worker.host, worker.port)}: stop what runs there, or set worker.port")
    try:
        open_data_folder(settings.data.dir)
        claim_log(settings.data.dir, settings.kafka)
    except OSError as error:
        raise WorkerError(f"data.dir = {str(settings.data.dir)!r} cannot be used: {error}") from error
    prepare_topics(settings, bootstrap)
    tune_interpreter()
    asyncio.run(_serve(settings, bootstrap))


def prepare_topics(settings: StreamsSettings, bootstrap: str) -> None:
    """Create the missing topics and check them, and meanwhile import what the worker needs next. Raises WorkerError."""

    kafka = settings.kafka.at(bootstrap)

    def prepare() -> None:
        create_topics(bootstrap, kafka)
        describe_topic(kafka, kafka.topic).check(kafka.partitions)
        check_group(kafka)

    with ThreadPoolExecutor(max_workers=1) as threads:
        created = threads.submit(prepare)
        for name in ("streams.worker.app", "streams.api.routes"):
            import_module(name)
    try:
        created.result()
    except TopicError as error:
        raise WorkerError(str(error)) from error


def tune_interpreter() -> None:
    """Tune the interpreter for threads that decode and count at the same time.

    A thread that returns from DuckDB gets the interpreter's lock after half a millisecond instead of five. The garbage collector
    skips the imported modules and runs by the clock (`streams.worker.app`) rather than by the number of objects. Arrow uses the
    system's allocator: mimalloc, its default, kept three times the memory in use.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)


async def _serve(settings: StreamsSettings, bootstrap: str) -> None:
    from streams.api.peers import Peers
    from streams.api.routes import add_routes
    from streams.store.held_shards import HeldShards
    from streams.worker.app import make_app
    from streams.worker.transport import LogHole

    registry = make_registry(settings)
    rules = settings.rules
    shards = HeldShards(settings.data.dir, rules, clock=choose_clock(settings.worker.clock_file), registry=registry)
    app = make_app(settings, bootstrap, shards)
    peers = Peers(registry, settings.worker.key)
    stop, stop_now = asyncio.Event(), asyncio.Event()
    add_routes(app, settings.worker.key, make_fan_out(settings, app, shards, peers), stop.is_set)

    def end() -> None:
        (stop_now if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end)
    try:
        (settings.data.dir / "run").mkdir(parents=True, exist_ok=True)
        await app.start()
        log.info("event=worker_started worker=%s broker=%s port=%d", settings.worker.name, bootstrap, settings.worker.port)
        await app.wait_first(stop.wait())
        if settings.worker.drain_s and not app.crashed:
            log.info("event=stopping drain_s=%g", settings.worker.drain_s)
            await app.wait_first(stop_now.wait(), timeout=settings.worker.drain_s)
    except OSError as error:
        raise WorkerError(f"worker {settings.worker.name} cannot start: {error}") from error
    finally:
        await _stop(app, shards)
        await peers.close()
    if isinstance(app.crash_reason, TopicUnfit | LogHole):
        raise WorkerError(f"worker {settings.worker.name} stops: {app.crash_reason}")
    if app.crashed:
        raise _describe_crash(app.crash_reason, settings)
    await asyncio.to_thread(leave_group, bootstrap, settings)
    log.info("event=worker_stopped worker=%s", settings.worker.name)


def _describe_crash(reason: BaseException | None, settings: StreamsSettings) -> WorkerError:
    from aiokafka.errors import KafkaError

    from streams.worker.fetches import UnreadableBatch

    if isinstance(reason, UnreadableBatch):
        return UnreadableLog(f"worker {settings.worker.name} cannot read the log: {reason}")
    why = explain(reason, settings.kafka) if isinstance(reason, KafkaError) else repr(reason)
    return WorkerError(f"worker {settings.worker.name} failed and stops, nothing is acknowledged: {why}")


def make_registry(settings: StreamsSettings) -> ShardRegistry:
    """Return the registry in which this worker lists the shards it holds."""
    from streams.store.shard_registry import ShardHolder, ShardRegistry, advertised_url

    worker = settings.worker
    url = worker.url or advertised_url(worker.host, worker.port)
    return ShardRegistry(settings.data.dir, ShardHolder(worker.name, url, os.getpid()))


def make_fan_out(settings: StreamsSettings, app: WorkerApp, shards: HeldShards, peers: Peers) -> FanOut:
    """Return the reads of this worker's HTTP, over its own shards and those of other workers."""
    from faust.types import TP

    from streams.api.fan_out import FanOut

    def find_end(partition: int) -> LogEnd | None:
        return app.find_end(TP(settings.kafka.topic, partition))

    return FanOut(settings.worker.name, settings.kafka.partitions, shards, peers, find_end)


async def _stop(app: WorkerApp, shards: HeldShards) -> None:
    try:
        await asyncio.wait_for(app.stop(), STOP_TIMEOUT_S)
    except TimeoutError:
        log.error("event=stop_timed_out after_s=%g", STOP_TIMEOUT_S)
    finally:
        shards.close()


def leave_group(bootstrap: str, settings: StreamsSettings) -> None:
    """Leave the consumer group now: a static member that only disconnects keeps its partitions until the session times out."""
    from kafka.admin import MemberToRemove
    from kafka.errors import KafkaError

    from streams.brokers.clients import KafkaAdminClient

    if not settings.worker.static:
        return
    address = settings.kafka.at(bootstrap)
    member = MemberToRemove(group_instance_id=settings.worker.name)
    try:
        with KafkaAdminClient(**client_options(address), request_timeout_ms=5000, bootstrap_timeout_ms=5000) as admin:
            admin.remove_group_members(settings.kafka.group, [member])
    except (KafkaError, OSError) as error:
        log.warning("event=group_not_left worker=%s reason=%r", settings.worker.name, explain_reason(error, address))
