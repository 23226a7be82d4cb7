"""What Kafka does to a topic besides appending: transactions, compaction, new partitions. Counts are right, or counting stops."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, NewPartitions

from queryloop.cli import main
from queryloop.exits import Exit
from queryloop.up.worker_process import WorkerProcess
from streams.brokers.broker import Broker
from streams.brokers.clients import KafkaAdminClient, KafkaProducer
from streams.brokers.topics import create_topics
from streams.worker.settings import StreamsSettings
from tests.streams.worker.test_main import await_applied, emit, make_settings, shards_of, total
from tests.support.logs import START, click, impression, query

WAIT_S = 60.0
COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.01",
    "max.compaction.lag.ms": "100",
    "min.compaction.lag.ms": "0",
}


@pytest.fixture
def settings(kafka_broker: Broker, unique: str, tmp_path: Path) -> StreamsSettings:
    """A worker of two partitions on real Kafka."""
    return make_settings(kafka_broker.bootstrap, unique, tmp_path / "data")


def test_another_topic_on_the_same_data_folder_is_refused_and_nothing_is_added_up(
    embedded_broker: Broker, unique: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = make_settings(embedded_broker.bootstrap, unique, tmp_path / "data", static=False)
    other = make_settings(embedded_broker.bootstrap, f"{unique}.b", tmp_path / "data", static=False)
    create_topics(embedded_broker.bootstrap, first.kafka)
    with WorkerProcess(first, tmp_path / "first.log") as worker:
        await_applied(worker, first, emit(first, [query("one", START)]))
        worker.stop()
    with WorkerProcess(other, tmp_path / "other.log") as worker:
        assert worker.child.sleep(WAIT_S) == Exit.USAGE
        assert f"count topic {unique}, kafka.topic is {unique}.b" in worker.child.tail()
    assert ask(other, tmp_path, "verify") == Exit.USAGE
    assert f"Set kafka.topic to {unique}" in capsys.readouterr().err
    assert ask(first, tmp_path, "verify") == Exit.DONE


@pytest.fixture
def admin(kafka_broker: Broker) -> Iterator[Any]:
    with KafkaAdminClient(bootstrap_servers=kafka_broker.bootstrap) as client:
        yield client


def ask(settings: StreamsSettings, folder: Path, *arguments: str) -> int:
    """Run a command with a worker's settings; its exit code."""
    kafka = settings.kafka
    (folder / "queryloop.toml").write_text(
        f'[data]\ndir = "{settings.data.dir}"\n[kafka]\nbootstrap = "{kafka.bootstrap}"\ntopic = "{kafka.topic}"\n'
        f'quarantine_topic = "{kafka.quarantine_topic}"\ngroup = "{kafka.group}"\npartitions = {kafka.partitions}\n'
        f"[worker]\nport = {settings.worker.port}\nretention_days = 0\n"
    )
    return main(["--config", str(folder / "queryloop.toml"), *arguments])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def transactional(settings: StreamsSettings) -> Any:
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap, transactional_id=settings.kafka.topic)
    producer.init_transactions()
    return producer


def send(producer: Any, settings: StreamsSettings, *lines: bytes) -> None:
    """Send lines of one session in a transaction, which stays open."""
    producer.begin_transaction()
    for line in lines:
        producer.send(settings.kafka.topic, line, key=b"s")
    producer.flush()


def test_only_committed_transactions_count_and_an_open_one_is_named(
    settings: StreamsSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_topics(settings.kafka.bootstrap or "", settings.kafka)
    producer = transactional(settings)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        send(producer, settings, query("committed", START), query("too", START + 1, "r"))
        producer.commit_transaction()
        send(producer, settings, query("aborted", START + 2, "x"), b"{broken")
        producer.abort_transaction()
        send(producer, settings, query("open", START + 3, "y"))
        partition = next(iter(await_events(worker, settings, 2)))
        assert ask(settings, tmp_path, "lag", "--json") == Exit.DONE
        lag = json.loads(capsys.readouterr().out)
        assert (
            lag["records"],
            lag["open_transaction_records"],
            next(one["records"] for one in lag["shards"] if one["shard"] == partition),
        ) == (0, 1, 0)
        assert ask(settings, tmp_path, "lag") == Exit.DONE
        assert "1 more wait for the end of an open transaction" in capsys.readouterr().out
        assert ask(settings, tmp_path, "verify") == Exit.DONE
        assert "equal: 2 lines" in capsys.readouterr().out

        producer.commit_transaction()
        shards = await_events(worker, settings, 3)
        assert (total(list(shards.values()), "counted"), shards[partition]["quarantined"]) == (3, {})
        until(lambda: shards_of(settings)[partition]["next_offset"] == 8)  # five records and three ends of transactions
        assert ask(settings, tmp_path, "verify") == Exit.DONE
        worker.stop()
    producer.close()


def await_events(worker: WorkerProcess, settings: StreamsSettings, events: int) -> dict[int, dict[str, Any]]:
    """Wait until both shards are held and have read so many events; those that have some, by partition."""

    def read() -> bool:
        shards = shards_of(settings)
        return len(shards) == 2 and total(list(shards.values()), "events") == events

    worker.child.wait_until(read, WAIT_S, f"{events} events read")
    return {number: shard for number, shard in shards_of(settings).items() if shard["events"]}


def test_a_compacted_topic_is_refused_at_the_start(settings: StreamsSettings, admin: Any, tmp_path: Path) -> None:
    admin.create_topics({settings.kafka.topic: {"num_partitions": 2, "replication_factor": 1, "configs": COMPACTED}})
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        assert worker.child.sleep(WAIT_S) == 1
        said = worker.child.tail()
    assert f"topic {settings.kafka.topic} has cleanup.policy=compact: compaction keeps only the last record of a session" in said
    assert "Traceback" not in said


def compact(settings: StreamsSettings, admin: Any) -> None:
    """Have the topic compacted, wait until records are gone, and set its policy back."""
    topic = ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topic, COMPACTED)
    admin.alter_configs([topic])
    producer = KafkaProducer(bootstrap_servers=settings.kafka.bootstrap)

    def has_holes() -> bool:
        for partition in range(2):  # a segment is closed when a record comes after its time
            producer.send(settings.kafka.topic, query(f"last{time.time()}", START), key=b"last", partition=partition)
        producer.flush()
        return any(offsets != list(range(len(offsets))) for offsets in map(offsets_of, range(2)))

    def offsets_of(partition: int) -> list[int]:
        place = TopicPartition(settings.kafka.topic, partition)
        consumer = KafkaConsumer(bootstrap_servers=settings.kafka.bootstrap, consumer_timeout_ms=500)
        consumer.assign([place])
        consumer.seek_to_beginning()
        offsets = [record.offset for record in consumer]
        consumer.close()
        return offsets

    until(has_holes)
    producer.close()
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, settings.kafka.topic, {"cleanup.policy": "delete"})])


@pytest.mark.full
def test_a_log_that_compaction_has_thinned_is_counted_by_no_new_shard_and_called_equal_by_no_verify(
    settings: StreamsSettings, admin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_topics(settings.kafka.bootstrap or "", settings.kafka)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        lines = [query(f"q{number}", START + number, f"text {number}", session_id=f"s{number % 3}") for number in range(30)]
        for first in range(0, 30, 3):
            positions = emit(settings, lines[first : first + 3])
        await_applied(worker, settings, positions)
        worker.stop()
    compact(settings, admin)
    assert ask(settings, tmp_path, "verify") == Exit.INCOMPLETE
    assert "though it has later ones: compaction removes records" in capsys.readouterr().out

    anew = settings.model_copy(update={"data": settings.data.model_copy(update={"dir": tmp_path / "anew"})})
    with WorkerProcess(anew, tmp_path / "anew.log") as worker:
        assert worker.child.sleep(WAIT_S) == 1
        assert "compaction removes records, and counts without them would be wrong" in worker.child.tail()


@pytest.mark.full
def test_a_log_that_was_cut_beyond_what_was_counted_cannot_be_verified(
    settings: StreamsSettings, admin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_topics(settings.kafka.bootstrap or "", settings.kafka)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, emit(settings, [query("first", START)]))
        worker.stop()
    [(partition, end)] = emit(settings, [query("lost", START + 1)]).items()
    positions = emit(settings, [query("last", START + 2)])
    admin.delete_records({TopicPartition(settings.kafka.topic, partition): end})
    assert ask(settings, tmp_path, "verify") == Exit.INCOMPLETE
    assert f"the log begins at offset {end}, the shard has counted to {end - 1}" in capsys.readouterr().out
    assert positions == {partition: end + 1}


def test_partitions_added_under_a_running_worker_stop_it_and_verify_names_those_without_a_shard(
    settings: StreamsSettings, admin: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_topics(settings.kafka.bootstrap or "", settings.kafka)
    lists = [
        impression(f"i{number}", START, f"L{number}", ["a", "b"], session_id=f"s{number}", query="lisbon") for number in range(20)
    ]
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, emit(settings, lists))
        admin.create_partitions({settings.kafka.topic: NewPartitions(4)})
        clicks = [click(f"c{number}", START + 5, f"L{number}", session_id=f"s{number}", query="lisbon") for number in range(20)]
        emit(settings, clicks)
        assert worker.child.sleep(WAIT_S) == 1
        said = worker.child.tail()
    assert f"topic {settings.kafka.topic} has 4 partitions, and is counted in 2 shards: sessions have moved" in said
    assert sorted(path.name for path in (settings.data.dir / "shards").glob("*.duckdb")) == ["events-0.duckdb", "events-1.duckdb"]
    assert ask(settings, tmp_path, "verify") == Exit.INCOMPLETE
    printed = capsys.readouterr().out
    assert "shard 2" in printed and "shard 3" in printed and "no shard counts this partition" in printed
    assert ask(settings, tmp_path, "windows", "--query", "lisbon") == Exit.UNAVAILABLE
    assert "no worker answers" in capsys.readouterr().err
