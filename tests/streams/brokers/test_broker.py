"""The brokers: each starts, answers, describes itself, and leaves no process or folder behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from streams.brokers import jars
from streams.brokers.broker import Broker, BrokerError, EmbeddedBroker, ExternalBroker, KafkaBroker, answers, choose_broker
from streams.brokers.jars import KafkaUnavailable
from streams.brokers.topics import KafkaSettings
from streams.runtime.processes import Child, ProcessError


def settings(**fields: object) -> object:
    return SimpleNamespace(**{"bootstrap": None, "broker": "embedded", "port": 0, **fields})


def test_every_broker_answers_and_describes_itself_in_one_line(broker: Broker) -> None:
    assert answers(broker.bootstrap)
    assert broker.bootstrap in broker.describe()
    assert "\n" not in broker.describe()


def test_the_embedded_broker_says_that_events_are_lost_when_it_stops(embedded_broker: Broker) -> None:
    assert not embedded_broker.durable
    assert "lost" in embedded_broker.describe()


def test_leaving_stops_the_process_and_removes_its_temporary_folder() -> None:
    broker = EmbeddedBroker()
    with broker:
        child = broker.child
        assert child is not None
        pid, folder = child.pid, child.log.parent
    assert not psutil.pid_exists(pid)
    assert not folder.exists()


def test_an_error_inside_the_block_still_stops_it() -> None:
    broker = EmbeddedBroker()
    with pytest.raises(KeyboardInterrupt), broker:
        assert broker.child is not None
        pid = broker.child.pid
        raise KeyboardInterrupt
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_a_port_in_use_is_named(kind: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        broker = choose_broker(settings(broker=kind), tmp_path, port)  # type: ignore[arg-type]
        said = rf"port {port} on 127\.0\.0\.1 is in use by process {os.getpid()} \(.*with kafka\.port \(QUERYLOOP_KAFKA_PORT"
        with pytest.raises(BrokerError, match=said), broker:
            raise AssertionError("must not start")


def test_an_external_broker_that_does_not_answer_is_named() -> None:
    with pytest.raises(BrokerError, match=r"kafka\.bootstrap=127\.0\.0\.1:1"), ExternalBroker("127.0.0.1:1"):
        raise AssertionError("must not enter")


def test_the_address_of_the_broker_here_is_the_same_at_each_start() -> None:
    for kind in ("embedded", "kafka"):
        assert choose_broker(KafkaSettings(broker=kind), Path("data")).bootstrap == "127.0.0.1:9092"  # type: ignore[arg-type]
        chosen = KafkaSettings(broker=kind, port=29_092)  # type: ignore[arg-type]
        assert choose_broker(chosen, Path("data")).bootstrap == "127.0.0.1:29092"


def test_settings_choose_the_broker(tmp_path: Path) -> None:
    assert isinstance(choose_broker(settings(), tmp_path), EmbeddedBroker)  # type: ignore[arg-type]
    assert isinstance(choose_broker(settings(broker="kafka"), tmp_path), KafkaBroker)  # type: ignore[arg-type]
    external = choose_broker(settings(broker="kafka", bootstrap="kafka:9092"), tmp_path)  # type: ignore[arg-type]
    assert isinstance(external, ExternalBroker) and external.bootstrap == "kafka:9092"


def test_without_java_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BrokerError, match="no `java` on PATH"), KafkaBroker(tmp_path):
        raise AssertionError("must not start")


def test_a_missing_embedded_broker_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/nowhere/tansu")
    with pytest.raises(BrokerError, match="no program for this machine: CALF_TANSU_BIN='/nowhere/tansu'"), EmbeddedBroker():
        raise AssertionError("must not start")


def test_jars_are_named_by_version_and_a_failed_fetch_leaves_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, text in {"java": "#!/bin/sh\n", "mvn": "#!/bin/sh\necho no such host\nexit 3\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    with pytest.raises(KafkaUnavailable, match=r"exit code 3\): no such host"):
        jars.fetch_jars()
    assert jars.jars_folder().name == f"kafka-{jars.kafka_version()}"
    assert list((tmp_path / "queryloop").iterdir()) == []


def test_a_child_that_dies_early_is_reported_with_its_output(tmp_path: Path) -> None:
    with (
        Child("the child", ["sh", "-c", "echo why it died; exit 7"], tmp_path / "log") as child,
        pytest.raises(ProcessError, match=r"(?s)the child ended with code 7 before ready.*why it died"),
    ):
        child.wait_until(lambda: False, 10, "ready")


def test_a_child_that_never_answers_is_an_error_and_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done"]
    with Child("the child", stubborn, tmp_path / "log") as child:
        child.wait_until(lambda: "up" in child.tail(), 10, "up")
        with pytest.raises(ProcessError, match="not ready after"):
            child.wait_until(lambda: False, 0.1, "ready")
        assert child.stop(0.1) == -9


def test_real_kafka_keeps_its_log_over_a_kill_and_a_restart(kafka_broker: Broker, tmp_path: Path) -> None:
    from kafka import KafkaConsumer, KafkaProducer
    from kafka.admin import KafkaAdminClient, NewTopic

    with KafkaBroker(tmp_path) as broker:
        with KafkaAdminClient(bootstrap_servers=broker.bootstrap) as admin:
            admin.create_topics([NewTopic("t", num_partitions=1, replication_factor=1)])
        producer = KafkaProducer(bootstrap_servers=broker.bootstrap, acks="all")
        producer.send("t", b"kept").get(20)
        producer.close()
        assert broker.child is not None
        broker.child.kill()
    with KafkaBroker(tmp_path) as broker:
        consumer = KafkaConsumer("t", bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest", consumer_timeout_ms=20000)
        assert next(consumer).value == b"kept"
        consumer.close()
