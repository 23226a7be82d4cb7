"""What `store` answers: True only when every event so far outlives a kill of the process, on a disk of any health."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.brokers.broker import Broker
from streams.brokers.topics import KafkaSettings, create_topics
from streams.emitter.emitter import Emitter, EmitterSettings, QueueFull
from streams.events.schema import Query
from tests.support.failing_disk import FailingDisk

AWAY = "127.0.0.1:1"
EMIT_AND_DIE = """
import json, os, resource, signal, sys
from pathlib import Path
from streams.emitter.emitter import Emitter, EmitterSettings
from streams.events.schema import Query
folder, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
emitter = Emitter("127.0.0.1:1", EmitterSettings(outbox_dir=Path(folder)))
for round in range(8):
    for number in range(200):
        emitter.emit(Query(event_id=f"{round}-{number}", ts=1.6e9, session_id=f"s{number}", query="q" * 300))
    print(json.dumps({"stored": emitter.store(5), "on_disk": emitter.counters().on_disk}), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def query(number: int) -> Query:
    return Query(event_id=f"e{number}", ts=1.6e9 + number, session_id=f"s{number % 7}", query="q")


def settings(folder: Path, **more: object) -> EmitterSettings:
    return EmitterSettings.model_validate({"outbox_dir": folder, "outbox_sync_s": 0.2, **more})


def emit_and_die(folder: Path, limit: int = 0) -> list[dict[str, int]]:
    """Eight times 200 events and `store`, then kill -9; return what was said after each."""
    command = [sys.executable, "-c", EMIT_AND_DIE, str(folder), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check_acknowledged_are_there(folder: Path, said: list[dict[str, int]]) -> None:
    stored = [one["stored"] for one in said]
    assert stored[0] and not stored[-1], "the disk filled up on the way"
    acknowledged = 200 * stored.index(False)
    with Emitter(AWAY, settings(folder)) as emitter:
        recovered = emitter.counters().recovered
        emitter.close(0)
    assert acknowledged <= recovered
    assert all(one["on_disk"] <= recovered for one in said), "nothing in memory alone is said to be on disk"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here; the tests with a limit on file sizes and a failing disk run anyway")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_file_system_and_a_kill_lose_no_event_that_was_stored(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(b"x" * 650_000)
    said = emit_and_die(small_disk / "outbox")
    (small_disk / "other").unlink()
    check_acknowledged_are_there(small_disk / "outbox", said)


def test_a_limit_on_the_file_size_and_a_kill_lose_no_event_that_was_stored(tmp_path: Path) -> None:
    said = emit_and_die(tmp_path, 300_000)
    check_acknowledged_are_there(tmp_path, said)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_while_kafka_is_away_is_answered_at_once_and_mended_without_a_loss(
    disk: FailingDisk, tmp_path: Path, number: int
) -> None:
    with Emitter(AWAY, settings(tmp_path)) as emitter:
        emitter.emit(query(0))
        assert emitter.store(30)
        disk.write_error = number
        for one in range(1, 50):
            emitter.emit(query(one))
        began = time.monotonic()
        assert not emitter.store(30)
        assert time.monotonic() - began < 10, "nobody waits for what cannot happen"
        assert emitter.counters().on_disk == 1 and emitter.counters().buffered == 50
        disk.write_error = 0
        assert emitter.store(30), "they waited in memory, and are written now"
        assert emitter.counters().on_disk == 50
        assert emitter.close(0)
    with Emitter(AWAY, settings(tmp_path)) as emitter:
        assert emitter.counters().recovered == 50
        emitter.close(0)


def test_a_disk_that_fails_at_fsync_makes_no_event_stored(disk: FailingDisk, tmp_path: Path) -> None:
    with Emitter(AWAY, settings(tmp_path)) as emitter:
        disk.sync_error = errno.EIO
        emitter.emit(query(0))
        assert not emitter.store(30)
        disk.sync_error = 0
        assert not emitter.store(30), "a later fsync that succeeds says nothing about what an earlier one lost"
        assert emitter.counters().on_disk == 0
        assert not emitter.close(0)


def test_storing_syncs_once_for_all_who_wait_and_not_at_all_when_the_settings_say_so(disk: FailingDisk, tmp_path: Path) -> None:
    for mode, syncs in (("store", True), ("interval", False)):
        with Emitter(AWAY, settings(tmp_path / mode, outbox_sync=mode, outbox_sync_s=3600)) as emitter:
            disk.syncs = 0
            emitter.emit(query(0))
            assert emitter.store(30)
            assert bool(disk.syncs) == syncs
            emitter.close(0)


def test_kafka_answers_for_a_disk_that_fails(disk: FailingDisk, embedded_broker: Broker, unique: str, tmp_path: Path) -> None:
    create_topics(embedded_broker.bootstrap, KafkaSettings(topic=unique, quarantine_topic=f"{unique}.q", partitions=1))
    with Emitter(embedded_broker.bootstrap, settings(tmp_path), topic=unique) as emitter:
        emitter.emit(query(0))
        assert emitter.flush(30)
        disk.write_error = errno.ENOSPC
        emitter.emit(query(1))
        assert emitter.store(30)
        assert emitter.counters().delivered == 2, "stored means here: acknowledged"


def test_a_buffer_that_fills_up_behind_a_failing_disk_refuses_and_names_it(disk: FailingDisk, tmp_path: Path) -> None:
    with Emitter(AWAY, settings(tmp_path, max_buffered=3)) as emitter:
        disk.write_error = errno.ENOSPC
        emitter.emit(query(0))
        assert not emitter.store(30)
        with pytest.raises(QueueFull, match=f"the outbox {tmp_path} fails .*No space left on device"):
            for number in range(1, 5):
                emitter.emit(query(number))
        assert not emitter.close(0), "what never reached the disk is lost by closing, and said to be"
        assert emitter.counters().failed == 3


def test_delivered_events_make_room_on_a_full_disk(
    disk: FailingDisk, embedded_broker: Broker, unique: str, tmp_path: Path
) -> None:
    create_topics(embedded_broker.bootstrap, KafkaSettings(topic=unique, quarantine_topic=f"{unique}.q", partitions=1))
    with Emitter(embedded_broker.bootstrap, settings(tmp_path, outbox_max_bytes=1_000_000), topic=unique) as emitter:
        for _ in range(40):
            emitter.emit_line(b'{"filler": "%s"}' % (b"x" * 10_000), "s")
            assert emitter.store(30)
        assert emitter.flush(30)
        time.sleep(0.5)  # the mark is written every 0.2 s
        before = len(list(tmp_path.glob("*.log")))
        disk.write_error = errno.ENOSPC
        emitter.emit(query(0))
        assert emitter.flush(30)
        assert before > 2 and len(list(tmp_path.glob("*.log"))) < before


def test_a_folder_removed_under_a_running_emitter_is_made_anew_and_the_loss_counted(tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    with Emitter(AWAY, settings(folder, max_buffered_bytes=1_000_000)) as emitter:
        for number in range(20):
            emitter.emit(query(number))
        assert emitter.store(30)
        shutil.rmtree(folder)
        emitter.emit(query(20))
        assert emitter.store(30) in (True, False)
        emitter.emit(query(21))
        emitter.store(30)
        counters = emitter.counters()
        assert counters.on_disk <= 2, "the first twenty are in memory alone"
        assert not emitter.close(0)
    with Emitter(AWAY, settings(folder)) as emitter:
        assert emitter.counters().recovered == 2
        emitter.close(0)
