"""The worker process on each broker: it counts exactly, survives kill -9, and reports what is wrong."""

from __future__ import annotations

import base64
import json
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from queryloop.up.worker_process import WorkerProcess, read_status
from streams.brokers.broker import Broker, KafkaBroker
from streams.brokers.topics import create_topics, topic_id
from streams.emitter.emitter import Emitter
from streams.importers.log_files import session_of
from streams.runtime.data_folder import find_data_folder
from streams.runtime.processes import Child, ProcessError, free_port
from streams.runtime.settings import SettingsError, is_loopback, load_settings
from streams.store.held_shards import shard_path
from streams.store.shard import CountingRules, Shard
from streams.worker.settings import StreamsSettings, WorkerSettings
from tests.support.logs import START, click, impression, query
from tests.support.prometheus import read_value
from tests.support.recount import recount

APPLIED_S = 60.0
LATER = query("later", START + 2 * 86_400)
"""Two days later, in the session of the bad events: no earlier click waits for its impression any longer."""


def make_settings(bootstrap: str, unique: str, data_dir: Path, **worker: Any) -> StreamsSettings:
    """A worker with topics, group, port and data folder of its own."""
    return StreamsSettings.model_validate(
        {
            "data": {"dir": data_dir},
            "kafka": {
                "bootstrap": bootstrap,
                "topic": unique,
                "quarantine_topic": f"{unique}.quarantine",
                "group": unique,
                "partitions": 2,
                "session_timeout_s": 6,
            },
            "worker": {"port": free_port(), "retention_days": 0, **worker},
            "lake": {"maturity_floor_s": 0},
        }
    )


def emit(settings: StreamsSettings, lines: list[bytes]) -> dict[int, int]:
    """Send lines to the events topic, small records so that there are many; the offset after the last, by partition."""
    assert settings.kafka.bootstrap is not None
    with Emitter(settings.kafka.bootstrap, topic=settings.kafka.topic) as sender:
        for line in lines:
            sender.emit_line(line, session_of(line))
        assert sender.flush(30)
        return sender.positions()


def shards_of(settings: StreamsSettings) -> dict[int, dict[str, Any]]:
    return {shard["partition"]: shard for shard in (read_status(settings) or {"shards": []})["shards"]}


def await_applied(worker: WorkerProcess, settings: StreamsSettings, positions: dict[int, int]) -> list[dict[str, Any]]:
    """Wait until the worker's totals have passed these offsets."""

    def applied() -> bool:
        shards = shards_of(settings)
        return all((shards.get(partition, {}).get("next_offset") or 0) >= offset for partition, offset in positions.items())

    worker.child.wait_until(applied, APPLIED_S, "all applied")
    return list(shards_of(settings).values())


def total(shards: list[dict[str, Any]], name: str) -> int:
    return sum(shard[name] for shard in shards)


def quarantined(shards: list[dict[str, Any]]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for shard in shards:
        for reason, number in shard["quarantined"].items():
            reasons[reason] = reasons.get(reason, 0) + number
    return reasons


def get(settings: StreamsSettings, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{settings.worker.port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def good_events(first: int, sessions: int) -> list[bytes]:
    """Sessions of query, list, click."""
    return [
        line
        for number in range(first, first + sessions)
        for line in (
            query(f"q{number}", START + number, f"q {number % 7}", session_id=f"s{number}"),
            impression(f"i{number}", START + number + 1, f"L{number}", session_id=f"s{number}"),
            click(f"c{number}", START + number + 9, f"L{number}", session_id=f"s{number}"),
        )
    ]


BAD = {
    "malformed": [b"\x00\xff\xfe binary junk", b"{broken"],
    "invalid": [b'{"type":"query","event_id":"no-ts","session_id":"s","query":"q"}'],
    "orphan_click": [click("orphan", START + 5, "unknown")],
    "too_old": [query("old", START - 40 * 86_400)],
    "too_large": [query("huge", START, "x" * 100_000)],
    "future_event": [query("future", 4_000_000_000.0)],
}


def test_a_worker_counts_exactly_through_bad_events_a_kill_and_a_restart(broker: Broker, unique: str, tmp_path: Path) -> None:
    settings = make_settings(broker.bootstrap, unique, tmp_path, retention_days=30)
    create_topics(broker.bootstrap, settings.kafka)
    first = good_events(0, 300)
    bad = [line for lines in BAD.values() for line in lines]
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        positions = emit(settings, [*first, *bad, LATER])
        await_applied(worker, settings, positions)
        worker.child.kill()
        positions |= emit(settings, [*good_events(300, 300), *first[:50]])
        worker.keep_alive()
        shards = await_applied(worker, settings, positions)

        assert total(shards, "events") == 1801 + len(bad) + 50
        assert total(shards, "counted") == recount([*good_events(0, 600), LATER]).counted == 1801
        assert (total(shards, "duplicates"), total(shards, "pending")) == (50, 0)
        assert quarantined(shards) == {why: len(lines) for why, lines in BAD.items()}
        assert_pages(settings, shards)
        assert_quarantine_topic(worker, settings, bad)
        worker.stop()
    assert "event=worker_stopped" in (tmp_path / "worker.log").read_text()
    assert_shards_are_free(settings, tmp_path)


def assert_pages(settings: StreamsSettings, shards: list[dict[str, Any]]) -> None:
    """/metrics has the same totals, /healthz and /readyz answer that all is well, and Faust's own pages are disabled."""
    metrics = get(settings, "/metrics")
    for shard in shards:
        assert read_value(metrics, "queryloop_counted_events", partition=str(shard["partition"])) == shard["counted"]
    assert get(settings, "/healthz") == "ok"
    assert json.loads(get(settings, "/readyz")) == {"ready": True, "state": "ok", "missing": []}
    for path in ("/router/", "/table/", "/graph/"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(settings, path)


def assert_quarantine_topic(worker: WorkerProcess, settings: StreamsSettings, bad: list[bytes]) -> None:
    """Each bad line is in the quarantine topic with its bytes and its reason, at least once."""
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        settings.kafka.quarantine_topic, bootstrap_servers=settings.kafka.bootstrap, auto_offset_reset="earliest"
    )
    found: list[dict[str, Any]] = []

    def arrived() -> bool:
        found.extend(json.loads(one.value) for batch in consumer.poll(timeout_ms=200).values() for one in batch)
        return len({(row["partition"], row["offset"], row["line"]) for row in found}) >= len(bad)

    worker.child.wait_until(arrived, 30, "quarantine in its topic")
    consumer.close()
    originals = {row["raw"].encode() if "raw" in row else base64.b64decode(row["raw_base64"]): row["reason"] for row in found}
    assert originals == {line: why for why, lines in BAD.items() for line in lines}


def assert_shards_are_free(settings: StreamsSettings, data_dir: Path) -> None:
    for partition in range(settings.kafka.partitions):
        shard = Shard.open(shard_path(data_dir, partition), CountingRules())
        assert shard.position() is not None
        shard.close()


def test_a_clock_that_is_ahead_ends_nobodys_waiting(broker: Broker, unique: str, tmp_path: Path) -> None:
    settings = make_settings(broker.bootstrap, unique, tmp_path, retention_days=30)
    settings = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"partitions": 1})})
    create_topics(broker.bootstrap, settings.kafka)
    now = float(round(time.time()))
    waits, ahead = click("c", now - 20, "L"), query("ahead", now + 86_390, session_id="ahead")
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        for line in (waits, ahead, impression("i", now - 30, "L")):
            shards = await_applied(worker, settings, emit(settings, [line]))
        assert (total(shards, "counted"), total(shards, "pending"), quarantined(shards)) == (3, 0, {})
        assert now - 60 <= shards[0]["latest_ts"] <= time.time() + 60
        worker.stop()


def test_a_clean_stop_gives_the_partitions_to_another_worker_at_once(kafka_broker: Broker, unique: str, tmp_path: Path) -> None:
    first = make_settings(kafka_broker.bootstrap, unique, tmp_path)
    second = make_settings(kafka_broker.bootstrap, unique, tmp_path, name="other")
    create_topics(kafka_broker.bootstrap, first.kafka)
    positions = emit(first, good_events(0, 40))
    with WorkerProcess(first, tmp_path / "first.log") as one:
        await_applied(one, first, positions)
        with WorkerProcess(second, tmp_path / "second.log") as other:
            other.child.wait_until(lambda: len(shards_of(second)) == 1, APPLIED_S, "one shard each")
            one.stop()
            positions |= emit(second, good_events(40, 40))
            shards = await_applied(other, second, positions)
            assert total(shards, "counted") == 240
            assert total(shards, "duplicates") == 0
            other.stop()


@pytest.mark.full
def test_a_broker_killed_under_a_worker_changes_no_count_and_floods_no_log(
    kafka_broker: Broker, unique: str, tmp_path: Path
) -> None:
    port = free_port()
    with KafkaBroker(tmp_path, port) as broker:
        settings = make_settings(broker.bootstrap, unique, tmp_path)
        create_topics(broker.bootstrap, settings.kafka)
        with WorkerProcess(settings, tmp_path / "worker.log") as worker:
            positions = emit(settings, [*good_events(0, 200), b"junk"])
            await_applied(worker, settings, positions)
            assert broker.child is not None
            broker.child.kill()
            worker.child.sleep(3)
            with KafkaBroker(tmp_path, port):
                positions |= emit(settings, [*good_events(200, 200), b"more junk"])
                shards = await_applied(worker, settings, positions)
                assert (total(shards, "counted"), quarantined(shards)) == (1200, {"malformed": 2})
                worker.stop()
    assert len((tmp_path / "worker.log").read_text().splitlines()) < 60


def test_a_new_log_under_the_old_name_is_read_from_its_start(broker: Broker, unique: str, tmp_path: Path) -> None:
    from kafka import KafkaAdminClient

    settings = make_settings(broker.bootstrap, unique, tmp_path, static=False)
    create_topics(broker.bootstrap, settings.kafka)
    positions = emit(settings, good_events(0, 100))
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, positions)
        worker.stop()
    with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
        admin.delete_topics([settings.kafka.topic])
    with Child("wait", ["sleep", "1"], tmp_path / "sleep.log") as child:
        child.sleep(2)
    create_topics(broker.bootstrap, settings.kafka)
    positions = emit(settings, good_events(0, 60) + good_events(100, 5))
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied_anew(worker, settings, positions)
        shards = list(shards_of(settings).values())
        assert total(shards, "counted") == 315
        assert total(shards, "duplicates") == 180
        worker.stop()
    assert "event=new_topic" in (tmp_path / "worker.log").read_text()


def await_applied_anew(worker: WorkerProcess, settings: StreamsSettings, positions: dict[int, int]) -> None:
    """Like await_applied, for offsets of a new topic under the same name."""
    assert settings.kafka.bootstrap is not None
    wanted = {
        partition: (topic_id(settings.kafka.bootstrap, settings.kafka.topic), offset) for partition, offset in positions.items()
    }

    def applied() -> bool:
        return {
            partition: (shard["topic_id"], shard["next_offset"]) for partition, shard in shards_of(settings).items()
        } == wanted

    worker.child.wait_until(applied, APPLIED_S, "the new log applied")


@pytest.mark.full
def test_a_log_that_is_lost_under_a_running_worker_is_noticed_and_its_successor_counted(
    kafka_broker: Broker, unique: str, tmp_path: Path
) -> None:
    """Real Kafka: the embedded broker creates a deleted topic again by itself, with four partitions."""
    from kafka import KafkaAdminClient

    settings = make_settings(kafka_broker.bootstrap, unique, tmp_path, static=False)
    create_topics(kafka_broker.bootstrap, settings.kafka)
    positions = emit(settings, good_events(0, 100))
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, positions)
        with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap) as admin:
            admin.delete_topics([settings.kafka.topic])
        worker.child.wait_until(lambda: "event=topic_made_again" in (tmp_path / "worker.log").read_text(), APPLIED_S, "noticed")
        positions = emit(settings, good_events(0, 60) + good_events(100, 5))
        await_applied_anew(worker, settings, positions)
        shards = list(shards_of(settings).values())
        assert (total(shards, "counted"), total(shards, "duplicates")) == (315, 180)
        assert (read_status(settings) or {})["new_topics"] >= 1
        assert (read_value(get(settings, "/metrics"), "queryloop_new_topics_total", worker="worker-0") or 0) >= 1
        worker.stop()


@pytest.fixture
def run_worker_process(tmp_path: Path) -> Callable[..., tuple[int | None, str]]:
    """Run `python -m streams` to its end; exit code and output."""

    def run(settings: StreamsSettings) -> tuple[int | None, str]:
        with WorkerProcess(settings, tmp_path / "worker.log") as worker:
            code = worker.child.sleep(60)
            return code, worker.child.tail()

    return run


def test_a_port_in_use_is_named(tmp_path: Path, run_worker_process: Callable[..., tuple[int | None, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = run_worker_process(make_settings("127.0.0.1:1", "t", tmp_path, port=port))
    assert code == 1
    assert f"port {port} on 127.0.0.1 is in use" in output
    assert "Traceback" not in output


def test_wrong_settings_are_refused_with_the_key(tmp_path: Path) -> None:
    (tmp_path / "typo.toml").write_text("[worker]\nretention_dais = 3\n")
    with Child("worker", [*WorkerProcess.COMMAND, "--config", tmp_path / "typo.toml"], tmp_path / "log") as child:
        assert child.sleep(60) == 2
        assert "worker.retention_dais" in child.tail() and "did you mean retention_days" in child.tail()


def test_without_a_broker_the_error_says_how_to_start_one(tmp_path: Path) -> None:
    with Child("worker", WorkerProcess.COMMAND, tmp_path / "log", {"PATH": "", "QUERYLOOP_DATA_DIR": str(tmp_path)}) as child:
        assert child.sleep(60) == 1
        assert "kafka.bootstrap is not set" in child.tail()


def test_a_wider_host_needs_a_key() -> None:
    environ = {"QUERYLOOP_WORKER_HOST": "0.0.0.0"}
    with pytest.raises(SettingsError, match=r"worker\.host = 0\.0\.0\.0 is not loopback"):
        load_settings(StreamsSettings, environ=environ)
    settings = load_settings(StreamsSettings, environ={**environ, "QUERYLOOP_WORKER_KEY": "secret"})
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("10.0.0.1", False)])
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_a_key_is_required(embedded_broker: Broker, unique: str, tmp_path: Path) -> None:
    settings = make_settings(embedded_broker.bootstrap, unique, tmp_path, key="letmein", static=False)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        worker.child.wait_until(lambda: read_status(settings) is not None, APPLIED_S, "answering with the key")
        for path in ("/status", "/metrics"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(settings, path)
        assert get(settings, "/healthz") == "ok"
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.worker.port}/healthz", timeout=10) as answer:
            assert answer.headers["Queryloop-Data-Id"] == find_data_folder(tmp_path).id
            assert "Queryloop-Data-Dir" not in answer.headers, "the path is for those who have the key"
        assert (read_status(settings) or {})["data_dir"] == str(tmp_path)
        worker.stop()


def test_a_worker_that_ends_by_itself_is_not_started_again(tmp_path: Path) -> None:
    settings = make_settings("127.0.0.1:1", "t", tmp_path)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        worker.child.kill()
        worker.keep_alive()
        worker.child.stop()
        assert worker.child.returncode in (1, -signal.SIGTERM)
    assert isinstance(WorkerSettings(key=SecretStr("k")).key, SecretStr)
    with socket.create_server(("127.0.0.1", settings.worker.port)), WorkerProcess(settings, tmp_path / "again.log") as worker:
        worker.child.sleep(60)
        with pytest.raises(ProcessError, match="ended with code 1"):
            worker.keep_alive()
