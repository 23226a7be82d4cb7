"""A shard whose file another process has open delays that shard alone: the worker counts the others, and takes it when it can."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from queryloop.up.worker_process import WorkerProcess, read_status
from streams.brokers.broker import Broker
from streams.brokers.topics import create_topics
from streams.store.held_shards import shard_path
from streams.store.shard import CountingRules, Shard
from tests.streams.worker.test_main import APPLIED_S, await_applied, emit, good_events, make_settings, total

HOLD = """
import sys, duckdb
con = duckdb.connect(sys.argv[1], read_only=True)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def analyst(shard: Path) -> Iterator[int]:
    """A process that has a shard's file open for reading; yields its process id."""
    command = [sys.executable, "-c", HOLD, str(shard)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process.pid
        process.stdin.close()


def test_a_shard_that_another_process_has_open_waits_and_the_others_go_on(broker: Broker, unique: str, tmp_path: Path) -> None:
    settings = make_settings(broker.bootstrap, unique, tmp_path)
    create_topics(broker.bootstrap, settings.kafka)
    lines = good_events(0, 40)
    positions = emit(settings, lines)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, positions)
        worker.child.kill()
    with analyst(shard_path(tmp_path, 1)) as pid, WorkerProcess(settings, tmp_path / "worker.log") as worker:
        lines += good_events(40, 40)
        positions = emit(settings, lines[-120:])
        await_applied(worker, settings, {0: positions[0]})
        status = read_status(settings) or {}
        assert [shard["partition"] for shard in status["shards"]] == [0]
        (waiting,) = status["waiting"]
        assert waiting["partition"] == 1 and f"PID {pid}" in waiting["error"] and "events-1.duckdb" in waiting["error"]
        log = worker.child.tail()
        assert log.count("event=shard_waits partition=1") == 1 and str(pid) in log, "said once"
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:  # the analyst is gone
        await_applied(worker, settings, positions)
        worker.stop()
    with (
        analyst(shard_path(tmp_path, 0)),
        analyst(shard_path(tmp_path, 1)),
        WorkerProcess(settings, tmp_path / "worker.log") as worker,
    ):
        worker.child.wait_until(lambda: len((read_status(settings) or {}).get("waiting", [])) == 2, APPLIED_S, "both wait")


def test_a_waiting_shard_is_taken_when_its_file_is_free_and_nothing_is_lost(broker: Broker, unique: str, tmp_path: Path) -> None:
    settings = make_settings(broker.bootstrap, unique, tmp_path)
    create_topics(broker.bootstrap, settings.kafka)
    Shard.open(shard_path(tmp_path, 1), CountingRules(retention_days=0)).close()
    lines = good_events(0, 60)
    with ExitStack() as stack:
        with analyst(shard_path(tmp_path, 1)):
            worker = stack.enter_context(WorkerProcess(settings, tmp_path / "worker.log"))
            positions = emit(settings, lines[:90])
            await_applied(worker, settings, {0: positions[0]})
        positions = emit(settings, lines[90:])
        shards = await_applied(worker, settings, positions)
        assert (read_status(settings) or {})["waiting"] == []
        assert total(shards, "events") == total(shards, "counted") == len(lines)
        worker.stop()
