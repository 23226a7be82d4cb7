"""Emitters over a fork and at the end of their process: nothing is lost in silence, sent twice, or waited for without end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams.brokers.broker import Broker
from streams.brokers.topics import KafkaSettings, create_topics
from streams.emitter.emitter import Emitter, EmitterSettings, OutboxError
from streams.events.schema import Query
from tests.streams.emitter.test_emitter import ids, read, wait_until

BEGIN = """
import json, os, sys, threading, time
from pathlib import Path
from streams.emitter.emitter import Emitter, EmitterSettings
from streams.events.schema import Query

bootstrap, topic, folder = sys.argv[1:]
settings = EmitterSettings(outbox_dir=Path(folder) if folder else None, exit_timeout_s=20 if topic else 0.5)

def query(name):
    return Query(event_id=name, ts=1.6e9, session_id=name, query="q")

def make():
    return Emitter(bootstrap, settings, topic=topic or "events")

def emit(emitter, name, count=50):
    for number in range(count):
        emitter.emit(query(f"{name}{number}"))
"""
AWAY = "127.0.0.1:1"


def run(script: str, bootstrap: str, topic: str = "", folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", BEGIN + script, bootstrap, topic, str(folder or "")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def make_topic(broker: Broker, name: str) -> str:
    create_topics(broker.bootstrap, KafkaSettings(topic=name, quarantine_topic=f"{name}.q", partitions=2))
    return name


def names(*of: str, count: int = 50) -> list[str]:
    return sorted(f"{name}{number}" for name in of for number in range(count))


FORK = """
emitter = make()
emit(emitter, "before")
if (child := os.fork()) == 0:
    emit(emitter, "child")
    safe = emitter.store(20)
    print(json.dumps({"safe": safe, "closed": emitter.close(20), "delivered": emitter.counters().delivered}), flush=True)
    os._exit(0)
emit(emitter, "parent")
assert os.waitpid(child, 0)[1] == 0
assert emitter.close(20) and emitter.counters().delivered == 100, emitter.counters()
"""


@pytest.mark.parametrize("has_outbox", [False, True])
def test_a_child_and_its_parent_each_deliver_their_own_events_once(
    embedded_broker: Broker, unique: str, tmp_path: Path, has_outbox: bool
) -> None:
    topic = make_topic(embedded_broker, unique)
    done = run(FORK, embedded_broker.bootstrap, topic, tmp_path if has_outbox else None)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"safe": True, "closed": True, "delivered": 50}
    assert sorted(ids(read(embedded_broker.bootstrap, topic))) == names("before", "child", "parent")


FORK_WHILE_OTHERS_EMIT = """
emitter, ended = make(), threading.Event()

def busy(name):
    number = 0
    while not ended.is_set():
        emitter.emit(query(f"{name}-{number}"))
        number += 1
        time.sleep(0.0005)

threads = [threading.Thread(target=busy, args=(name,)) for name in "abc"]
for thread in threads:
    thread.start()
children = []
for number in range(20):
    if (child := os.fork()) == 0:
        emitter.emit(query(f"child{number}"))
        os._exit(0 if emitter.close(20) else 1)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
ended.set()
for thread in threads:
    thread.join()
print(json.dumps({"codes": codes, "kept": emitter.close(20), "emitted": emitter.counters().emitted}))
"""


@pytest.mark.parametrize("has_outbox", [False, True])
def test_no_child_hangs_when_other_threads_emit_during_the_fork(
    embedded_broker: Broker, unique: str, tmp_path: Path, has_outbox: bool
) -> None:
    topic = make_topic(embedded_broker, unique)
    done = run(FORK_WHILE_OTHERS_EMIT, embedded_broker.bootstrap, topic, tmp_path if has_outbox else None)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["codes"] == [0] * 20 and said["kept"]
    arrived = ids(read(embedded_broker.bootstrap, topic))
    assert len(arrived) == len(set(arrived)) == said["emitted"] + 20
    assert {f"child{number}" for number in range(20)} <= set(arrived)


CHILD_DIES = """
emitter = make()
emit(emitter, "parent")
for number in range(2):
    if (child := os.fork()) == 0:
        emit(emitter, "child")
        assert emitter.store(20)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
emitter.close(0)
"""


def test_a_childs_outbox_is_a_subfolder_that_the_next_child_takes_over(tmp_path: Path) -> None:
    done = run(CHILD_DIES, AWAY, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    for folder, recovered in ((tmp_path / "fork-0", 100), (tmp_path, 150)):
        with Emitter(AWAY, EmitterSettings(outbox_dir=folder)) as emitter:
            assert emitter.counters().recovered == recovered
            emitter.close(0)
    assert not (tmp_path / "fork-1").exists()


PARENT_CLOSES_FIRST = """
emitter = make()
ready, go = os.pipe()
if (child := os.fork()) == 0:
    os.close(go)
    os.read(ready, 1)
    os._exit(0)
emitter.close(0)
make().close(0)
closed = make()
closed.close(0)
if (second := os.fork()) == 0:
    try:
        closed.emit(query("late"))
    except RuntimeError as error:
        os._exit(0 if "closed" in str(error) else 1)
    os._exit(2)
os.close(go)
assert [os.waitpid(one, 0)[1] for one in (child, second)] == [0, 0]
"""


def test_a_child_does_not_hold_its_parents_outbox_and_knows_what_was_closed(tmp_path: Path) -> None:
    done = run(PARENT_CLOSES_FIRST, AWAY, folder=tmp_path)
    assert done.returncode == 0, done.stderr


MULTIPROCESSING = """
import multiprocessing

emitter = make()

def work(name):
    emit(emitter, name)

if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")
    workers = [fork.Process(target=work, args=(f"worker{number}-",)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
"""


def test_workers_of_multiprocessing_deliver_what_they_buffered_when_they_end(embedded_broker: Broker, unique: str) -> None:
    topic = make_topic(embedded_broker, unique)
    done = run(MULTIPROCESSING, embedded_broker.bootstrap, topic)
    assert done.returncode == 0 and done.stderr == ""
    assert sorted(ids(read(embedded_broker.bootstrap, topic))) == names("worker0-", "worker1-", "worker2-")


ENDS = {
    "at once": ("emitter = make()\nemit(emitter, 'a')", 0),
    "by sys.exit": ("emitter = make()\nemit(emitter, 'a')\nsys.exit(3)", 3),
    "by an exception": ("emitter = make()\nemit(emitter, 'a')\nraise ValueError", 1),
    "inside a with block": ("with make() as emitter:\n    emit(emitter, 'a')\n    sys.exit(4)", 4),
    "with several emitters": ("kept = [make() for _ in range(5)]\nfor one in kept: emit(one, 'abcde'[kept.index(one)], 10)", 0),
    "after its emitter was collected": ("emit(make(), 'a')\nimport gc; gc.collect()", 0),
    "while another thread emits": (
        "emitter = make()\ndef late():\n    time.sleep(0.3)\n    emit(emitter, 'a')\nthreading.Thread(target=late).start()",
        0,
    ),
    "from an exit function": ("import atexit\nemitter = make()\natexit.register(lambda: emit(emitter, 'a'))", 0),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_that_ends_without_close_delivers_what_is_buffered(embedded_broker: Broker, unique: str, end: str) -> None:
    topic = make_topic(embedded_broker, unique)
    script, code = ENDS[end]
    done = run(script, embedded_broker.bootstrap, topic)
    assert done.returncode == code and "event=" not in done.stderr, done.stderr
    wanted = names(*"abcde", count=10) if "several" in end else names("a")
    assert sorted(ids(read(embedded_broker.bootstrap, topic))) == wanted


AWAY_AT_THE_END = """
kept = []
for place in range(4):
    kept.append(Emitter(bootstrap, EmitterSettings(outbox_dir=Path(folder) / str(place) if folder else None, exit_timeout_s=0.5)))
    emit(kept[-1], "a")
"""


def test_what_cannot_be_delivered_at_the_end_is_said_and_bounded_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(AWAY_AT_THE_END, AWAY)
    assert done.returncode == 0
    assert done.stderr.count("event=lost_at_exit topic=events events=50") == 4 and "emitter.exit_timeout_s" in done.stderr
    done = run(AWAY_AT_THE_END, AWAY, folder=tmp_path)
    assert done.stderr.count("event=left_at_exit topic=events events=50") == 4 and str(tmp_path / "3") in done.stderr
    assert time.monotonic() - began < 30
    with Emitter(AWAY, EmitterSettings(outbox_dir=tmp_path / "3")) as emitter:
        assert emitter.counters().recovered == 50
        emitter.close(0)


def test_a_collected_emitter_ends_its_thread_and_frees_its_outbox(tmp_path: Path) -> None:
    emitter = Emitter(AWAY, EmitterSettings(outbox_dir=tmp_path))
    del emitter
    wait_until(lambda: is_free(tmp_path), 20)


def test_a_collected_emitter_delivers_what_it_has(embedded_broker: Broker, unique: str, tmp_path: Path) -> None:
    topic = make_topic(embedded_broker, unique)

    def emit() -> None:
        emitter = Emitter(embedded_broker.bootstrap, EmitterSettings(outbox_dir=tmp_path), topic=topic)
        for name in "abc":
            emitter.emit(Query(event_id=name, ts=1.6e9, session_id=name, query="q"))

    emit()
    wait_until(lambda: is_free(tmp_path), 20)
    assert sorted(ids(read(embedded_broker.bootstrap, topic))) == ["a", "b", "c"]


def test_a_collected_emitter_waits_for_no_broker_longer_than_closing_does(tmp_path: Path) -> None:
    emitter = Emitter(AWAY, EmitterSettings(outbox_dir=tmp_path))
    emitter.emit(Query(event_id="a", ts=1.6e9, session_id="a", query="q"))
    del emitter
    wait_until(lambda: is_free(tmp_path), 30)
    with Emitter(AWAY, EmitterSettings(outbox_dir=tmp_path)) as emitter:
        assert emitter.counters().recovered == 1
        emitter.close(0)


def is_free(folder: Path) -> bool:
    try:
        Emitter(AWAY, EmitterSettings(outbox_dir=folder)).close(0)
    except OutboxError:
        return False
    return True
