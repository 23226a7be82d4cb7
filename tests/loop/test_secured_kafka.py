"""The loop on Kafka as production runs it: TLS, logins, certificates, users with no more rights than docs/kafka.md lists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from queryloop.pytest_plugin.worker_pool import WorkerPool
from queryloop.up.worker_process import WorkerProcess, read_progress, read_status
from queryloop.verify.topic_reader import TopicReadError, open_partition
from streams.brokers.broker import BrokerError, ExternalBroker
from streams.brokers.connection import KafkaConnection
from streams.brokers.topics import KafkaSettings, TopicError, create_topics, end_offsets, topic_id
from streams.emitter.emitter import Emitter, EmitterSettings
from streams.runtime.environment import to_environ
from streams.runtime.processes import free_port
from streams.worker.settings import StreamsSettings
from tests.support.logs import START, click, impression, query
from tests.support.secured_kafka import NOBODY, PASSWORD, USER, SecuredKafka, run_secured_kafka

ROOT = Path(__file__).resolve().parents[2]
APPLIED_S = 60.0
PARTITIONS = 2
Login = Callable[[SecuredKafka], dict[str, Any]]


@pytest.fixture(scope="module")
def secured(can_run_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """One node for this file; it is skipped where real Kafka cannot run."""
    with run_secured_kafka(tmp_path_factory.mktemp("secured") / "kafka") as running:
        yield running


def documented_rights(role: str) -> list[tuple[str, str, str]]:
    """Return the rights of a role from the table of docs/kafka.md: kind of resource, the setting with its name, operation."""
    text = (ROOT / "docs" / "kafka.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| {role} |"))
    found = re.findall(r"(Topic|Group) `kafka\.(\w+)`: ([\w, ]+)", row)
    return [(kind.upper(), setting, one) for kind, setting, rights in found for one in re.findall(r"\w+", rights)]


def grant(secured: SecuredKafka, kafka: KafkaSettings, user: str, *roles: str) -> None:
    names = {"Read": "READ", "Write": "WRITE", "Describe": "DESCRIBE", "Create": "CREATE", "Delete": "DELETE"}
    rights = [right for role in roles for right in documented_rights(role)]
    secured.allow(user, *((kind, getattr(kafka, setting), names[operation]) for kind, setting, operation in rights))


def settings_for(login: dict[str, Any], unique: str, data_dir: Path) -> StreamsSettings:
    names = {"topic": unique, "quarantine_topic": f"{unique}.quarantine", "group": unique}
    return StreamsSettings.model_validate(
        {
            "data": {"dir": data_dir},
            "kafka": {**login, **names, "partitions": PARTITIONS, "session_timeout_s": 6},
            "worker": {"port": free_port(), "retention_days": 0},
            "lake": {"maturity_floor_s": 0},
        }
    )


def lines(first: int, number: int) -> list[tuple[bytes, str]]:
    """Sessions of a query, a list and its click."""
    found = []
    for n in range(first, first + number):
        session = f"s{n}"
        found += [
            (query(f"q{n}", START + n, "q", session_id=session), session),
            (impression(f"i{n}", START + n + 1, f"L{n}", session_id=session), session),
            (click(f"c{n}", START + n + 2, f"L{n}", session_id=session), session),
        ]
    return found


def send(settings: StreamsSettings, events: list[tuple[bytes, str]]) -> dict[int, int]:
    with Emitter(settings.kafka, EmitterSettings(batch_events=5), topic=settings.kafka.topic) as sender:
        for line, session in events:
            sender.emit_line(line, session)
        assert sender.flush(30)
        return sender.positions()


def await_applied(worker: WorkerProcess, settings: StreamsSettings, positions: dict[int, int]) -> None:
    def applied() -> bool:
        offsets, _ = read_progress(settings)
        return bool(offsets) and all(offsets.get(partition, 0) >= offset for partition, offset in positions.items())

    worker.child.wait_until(applied, APPLIED_S, "all applied")


def command(settings: StreamsSettings, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = to_environ(settings, {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"})
    program = [sys.executable, "-m", "queryloop", *arguments]
    return subprocess.run(program, env=environ, capture_output=True, text=True, timeout=90, check=False)


def run_worker(settings: StreamsSettings) -> subprocess.CompletedProcess[str]:
    environ = to_environ(settings, {**os.environ, "PYTHONPATH": str(ROOT)})
    program = [sys.executable, "-m", "streams"]
    return subprocess.run(program, env=environ, capture_output=True, text=True, timeout=60, check=False)


def count_all(settings: StreamsSettings, log: Path) -> None:
    """Emit, count, kill the worker, emit more, count again, verify; the quarantine topic gets what cannot be used."""
    positions = send(settings, lines(0, 20))
    with WorkerProcess(settings, log) as worker:
        await_applied(worker, settings, positions)
        worker.child.kill()
        positions = send(settings, [*lines(20, 20), (b"{broken", "s1")])
        worker.keep_alive()
        await_applied(worker, settings, positions)
        shards = (read_status(settings) or {})["shards"]
        assert sum(shard["counted"] for shard in shards) == 40 * 3
        verified = command(settings, "verify")
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "equal: 121 lines" in verified.stdout
        lag = command(settings, "lag", "--json")
        assert lag.returncode == 0 and '"records": 0' in lag.stdout
        published = "event=quarantine_published"
        worker.child.wait_until(lambda: published in log.read_text(), APPLIED_S, published)
        worker.stop()
    assert "event=group_not_left" not in log.read_text()
    assert PASSWORD not in log.read_text() + verified.stdout + verified.stderr


@pytest.mark.parametrize(
    ("login", "user"),
    [
        (lambda kafka: kafka.scram(user="worker-scram"), "worker-scram"),
        (lambda kafka: kafka.mutual_tls("worker-tls"), "worker-tls"),
    ],
    ids=["scram over tls", "mutual tls"],
)
def test_all_is_counted_and_verified_by_a_user_with_the_documented_rights_and_without_create(
    secured: SecuredKafka, login: Login, user: str, unique: str, tmp_path: Path
) -> None:
    settings = settings_for(login(secured), unique, tmp_path / "data")
    create_topics(secured.plain, settings.kafka.at_own_broker(secured.plain))
    grant(secured, settings.kafka, user, "worker", "emitter", "verify")
    count_all(settings, tmp_path / "worker.log")


@pytest.mark.parametrize(
    "login",
    [
        lambda kafka: kafka.scram("PLAIN"),
        lambda kafka: kafka.scram("SCRAM-SHA-256"),
        lambda kafka: kafka.scram("SCRAM-SHA-512", listener="SASL_PLAINTEXT"),
        lambda kafka: kafka.token(),
    ],
    ids=["plain", "scram-sha-256", "no tls", "oauthbearer"],
)
def test_every_login_works_with_both_client_libraries(secured: SecuredKafka, login: Login, unique: str) -> None:
    kafka = KafkaSettings(**login(secured), topic=unique, quarantine_topic=f"{unique}.q", partitions=1)
    grant(secured, kafka, USER, "emitter", "verify")
    secured.allow(USER, *(("TOPIC", name, "CREATE") for name in (kafka.topic, kafka.quarantine_topic)))
    secured.allow(USER, ("TOPIC", kafka.quarantine_topic, "DESCRIBE"))
    create_topics(kafka.bootstrap or "", kafka)
    with Emitter(kafka, topic=unique) as sender:
        sender.emit_line(b"{}", "s")
        assert sender.flush(20)
    assert end_offsets(kafka, unique) == {0: 1}
    with open_partition(kafka, unique, 0) as reader:
        assert [record[2] for record in reader.read(1)] == [b"{}"]


def test_a_topic_that_may_not_be_created_is_named_with_the_right_that_is_missing(secured: SecuredKafka, unique: str) -> None:
    kafka = KafkaSettings(**secured.scram(), topic=unique, quarantine_topic=f"{unique}.q")
    secured.allow(USER, *(("TOPIC", name, "DESCRIBE") for name in (kafka.topic, kafka.quarantine_topic)))
    said = (
        f"topic {unique} does not exist, and User:{USER} lacks the right Create on it: create it with 4 partitions, or allow it"
    )
    with pytest.raises(TopicError, match=re.escape(said)) as caught:
        create_topics(kafka.bootstrap or "", kafka)
    assert f"--allow-principal User:{USER} --operation Create --topic {unique}" in str(caught.value)
    assert "address" not in str(caught.value)


def test_a_topic_that_may_not_be_described_is_named_too(secured: SecuredKafka, unique: str) -> None:
    kafka = KafkaSettings(**secured.scram(user=NOBODY), topic=unique, quarantine_topic=f"{unique}.q")
    create_topics(secured.plain, kafka.at_own_broker(secured.plain))
    said = rf"User:{NOBODY} lacks the right Describe on topic {unique}"
    with pytest.raises(TopicError, match=said):
        create_topics(kafka.bootstrap or "", kafka)
    with pytest.raises(TopicError, match=said):
        topic_id(kafka, unique)
    with (
        pytest.raises(TopicReadError, match=said),
        open_partition(kafka, unique, 0) as reader,
    ):
        list(reader.read(1))
    failed: list[str] = []
    with Emitter(
        kafka, EmitterSettings(delivery_timeout_s=1.0), topic=unique, on_failure=lambda lines, reason: failed.append(reason)
    ) as sender:
        sender.emit_line(b"{}", "s")
        sender.flush(1)
    assert failed and f"User:{NOBODY} lacks a right on the topic" in failed[0]


def test_a_worker_that_may_not_use_its_group_ends_and_says_so(secured: SecuredKafka, unique: str, tmp_path: Path) -> None:
    settings = settings_for(secured.scram(user="groupless"), unique, tmp_path / "data")
    create_topics(secured.plain, settings.kafka.at_own_broker(secured.plain))
    grant(secured, settings.kafka, "groupless", "emitter", "verify")
    secured.allow("groupless", ("TOPIC", settings.kafka.quarantine_topic, "DESCRIBE"))
    done = run_worker(settings)
    assert done.returncode == 1
    assert "User:groupless lacks the right Read on the consumer group kafka.group" in done.stderr.splitlines()[-1]
    assert PASSWORD not in done.stderr


WRONG: dict[str, tuple[Login, str]] = {
    "password": (lambda kafka: {**kafka.scram(), "sasl_password": "wrong"}, "it refuses the login of User:loop by SCRAM-SHA-512"),
    "user": (lambda kafka: kafka.scram("PLAIN", user="unknown"), "it refuses the login of User:unknown by PLAIN"),
    "authority": (lambda kafka: without(kafka.scram(), "ssl_ca_file"), "set kafka.ssl_ca_file to that authority's certificate"),
    "name": (
        lambda kafka: {**kafka.scram(), "bootstrap": kafka.address("SASL_SSL").replace("127.0.0.1", "localhost")},
        "its certificate is for another name",
    ),
    "no certificate": (
        lambda kafka: without(kafka.mutual_tls(), "ssl_cert_file"),
        "refuses this client's certificate, or that there",
    ),
    "foreign certificate": (
        lambda kafka: {**kafka.mutual_tls(), "ssl_cert_file": foreign(kafka)},
        "signed by an authority it trusts",
    ),
    "plaintext to tls": (lambda kafka: {"bootstrap": kafka.address("SSL")}, "speaks TLS"),
    "no login": (lambda kafka: {"bootstrap": kafka.address("SASL_PLAINTEXT")}, "closes them before it answers"),
    "login to a listener without": (
        lambda kafka: {**kafka.scram(listener="SASL_PLAINTEXT"), "bootstrap": kafka.plain},
        "what listens there has no login",
    ),
    "empty token": (
        lambda kafka: {**kafka.token(), "sasl_token_file": Path(os.devnull)},
        "kafka.sasl_token_file = '/dev/null' is empty",
    ),
}


def without(login: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in login.items() if name != key}


def foreign(kafka: SecuredKafka) -> Path:
    """Return the certificate of an authority that the node does not trust."""
    path = kafka.folder / "foreign.pem"
    trustme.CA().issue_cert("x@example.org", common_name="x").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_connection_is_said_and_not_the_address_blamed(secured: SecuredKafka, case: str) -> None:
    login, said = WRONG[case]
    connection = KafkaConnection(**login(secured))
    with pytest.raises(TopicError, match=re.escape(said)) as caught:
        topic_id(connection, "events", timeout_s=3.0)
    if case == "no login":
        return  # each of the others would wait for its whole time too
    with pytest.raises(BrokerError, match=re.escape(said)), ExternalBroker(connection):
        raise AssertionError("must not enter")
    with pytest.raises(TopicReadError, match=re.escape(said)), open_partition(connection, "events", 0):
        raise AssertionError("must not open")
    assert "is the address right" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


def test_an_emitter_says_why_it_cannot_connect(secured: SecuredKafka, caplog: pytest.LogCaptureFixture) -> None:
    wrong = KafkaConnection(**{**secured.scram(), "sasl_password": "wrong horse"})
    with Emitter(wrong, EmitterSettings(delivery_timeout_s=1.0)) as sender:
        sender.emit_line(b"{}", "s")
        assert not sender.flush(1)
    assert "it refuses the login of User:loop by SCRAM-SHA-512" in caplog.text
    assert "wrong horse" not in caplog.text


def test_the_test_fixture_counts_on_a_secured_broker_with_the_settings_of_the_environment(
    secured: SecuredKafka, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    login = {**secured.scram(user="tester"), "bootstrap": None}
    for name, value in login.items():
        if value is not None:
            monkeypatch.setenv(f"QUERYLOOP_KAFKA_{name.upper()}", str(value))

    class Runners:
        folder = tmp_path

    kafka = WorkerPool(Runners())._settings(secured.address("SASL_SSL"), {}).kafka  # type: ignore[arg-type]
    assert (kafka.security_protocol, kafka.sasl_username, kafka.ssl_ca_file) == ("SASL_SSL", "tester", login["ssl_ca_file"])
    assert kafka.sasl_password is not None and kafka.sasl_password.get_secret_value() == PASSWORD
