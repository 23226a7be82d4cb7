"""How a worker's restart is timed from its log and its /status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from queryloop.torture import workers
from queryloop.torture.workers import Restart, Worker
from streams.worker.settings import StreamsSettings

TAKEN = "ts=2026 level=INFO logger=streams.store.held_shards event=shard_taken partition={} offset={} topic_id={}\n"


class FakeChild:
    """A process that runs until it is killed."""

    returncode: int | None = None

    def kill(self) -> None:
        self.returncode = -9


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What /status answers; nothing at first."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(workers, "read_status", lambda settings, timeout_s: told or None)
    monkeypatch.setattr(workers, "Child", lambda *arguments: FakeChild())
    return told


@pytest.fixture
def worker(tmp_path: Path, answers: dict[str, Any]) -> Worker:
    made = Worker(StreamsSettings(), tmp_path / "worker.log")
    made.log.write_text(TAKEN.format(0, 99, "before"))
    made.start("killed")
    return made


def shard(partition: int, next_offset: int | None, topic_id: str = "t") -> dict[str, Any]:
    return {"partition": partition, "next_offset": next_offset, "topic_id": topic_id}


def say(worker: Worker, text: str) -> None:
    with worker.log.open("a") as log:
        log.write(text)


def test_a_worker_is_ready_once_a_shard_is_past_the_offset_at_which_it_was_taken(worker: Worker, answers: dict[str, Any]) -> None:
    answers["shards"] = [shard(0, 100)]
    worker.poll()
    assert not worker.is_counting, "what its log said before this start does not count"
    say(worker, TAKEN.format(0, 100, "t") + TAKEN.format(1, 7, "t"))
    worker.poll()
    assert not worker.is_counting, "nothing is applied yet"
    answers["shards"] = [shard(0, 100), shard(1, 8)]
    worker.poll()
    assert worker.is_counting
    assert worker.restarts[-1].ready_s is not None and worker.restarts[-1].ready_s >= 0


def test_offsets_of_a_lost_log_are_not_progress(worker: Worker, answers: dict[str, Any]) -> None:
    say(worker, TAKEN.format(0, 0, "new"))
    answers["shards"] = [shard(0, 500, "old")]
    worker.poll()
    assert not worker.is_counting
    answers["shards"] = [shard(0, 1, "new")]
    worker.poll()
    assert worker.is_counting


def test_a_shard_taken_again_counts_from_where_it_was_first_taken(worker: Worker, answers: dict[str, Any]) -> None:
    say(worker, TAKEN.format(0, 10, "t") + TAKEN.format(0, 12, "t"))
    answers["shards"] = [shard(0, 12)]
    worker.poll()
    assert worker.is_counting


def test_a_kill_before_the_first_batch_is_no_time_but_is_marked(worker: Worker) -> None:
    worker.kill()
    assert worker.ended() == -9
    assert worker.restarts == [Restart("worker-0", "killed", worker.restarts[0].started, None, again=True)]
    assert not worker.restarts[0].waits
