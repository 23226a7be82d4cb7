"""`queryloop erase`: with the worker running and without, twice, after a kill, and through everything that brings events back."""

from __future__ import annotations

import fcntl
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from queryloop.cli import main
from queryloop.erase import command
from queryloop.exits import Exit
from queryloop.replay.replay import replay_isolated
from queryloop.up.worker_process import WorkerProcess
from serving.releases import registry
from streams.brokers.topics import create_topics
from streams.emitter.outbox import Outbox
from streams.emitter.record_batches import Line
from streams.runtime import artifacts
from streams.runtime.artifact_removal import hide
from streams.store.held_shards import shard_path
from streams.store.shard import CountingRules, Shard
from streams.worker.settings import StreamsSettings
from tests.queryloop.commands.test_verify import write_config
from tests.streams.worker.test_main import await_applied, emit, get, make_settings
from tests.support.command_table import check_answer
from tests.support.logs import START, day, feed, impression, query, read

RULES = CountingRules(session_cap=20)
SECRET = "my-own-name"


def visits(*sessions: str) -> list[bytes]:
    """Two queries and a list of each session, the first query one that only this session made, and a bad line."""
    return [
        line
        for name in sessions
        for line in (
            query(f"{name}-q", START, f"{SECRET} {name}", session_id=name, user_id=f"u-{name}"),
            query(f"{name}-r", START + 5, "shoes", session_id=name, user_id=f"u-{name}"),
            impression(f"{name}-e", START + 6, f"{name}-i", query="shoes", session_id=name, user_id=f"u-{name}"),
            f'{{"type":"query","event_id":"{name}-bad","session_id":"{name}"}}'.encode(),
        )
    ]


class Stopped:
    """A data folder with one shard that no worker holds, and the command line on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data, self.capsys, self.config = folder / "data", capsys, folder / "queryloop.toml"
        self.config.write_text(f'[data]\ndir = "{self.data}"\n[kafka]\npartitions = 1\n')
        shard = Shard.open(shard_path(self.data, 0), RULES)
        feed(shard, visits("sess-1", "sess-2"))
        shard.close()

    def erase(self, *arguments: str, code: Exit = Exit.DONE) -> dict[str, Any]:
        self.capsys.readouterr()
        assert main(["--config", str(self.config), "erase", *arguments, "--json"]) == code
        printed: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        check_answer("erase", code, printed)
        return printed

    def everything(self) -> bytes:
        """Every file of erasures, and every value of the shard's tables."""
        files = b"".join(path.read_bytes() for path in self.data.glob("erasures/*"))
        shard = Shard.open(shard_path(self.data, 0), RULES)
        tables = read(shard, "SELECT table_name FROM duckdb_tables() WHERE NOT temporary")["table_name"].to_pylist()
        rows = [repr(read(shard, f"FROM {name}").to_pylist()) for name in tables]
        shard.close()
        return files + "".join(rows).encode()


@pytest.fixture
def stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Stopped:
    return Stopped(tmp_path, capsys)


def test_a_stopped_shard_loses_the_session_and_no_file_keeps_its_id(stopped: Stopped) -> None:
    counted = stopped.erase("--session", "sess-1", "--dry-run")
    assert (counted["dry_run"], counted["erasure"], counted["total"]) == (True, None, 4)
    assert not (stopped.data / "erasures").exists()
    done = stopped.erase("--session", "sess-1")
    assert (done["shards"], done["total"], done["state"], done["kind"]) == (counted["shards"], 4, "done", "session")
    assert b"sess-1" not in stopped.everything() and b"sess-2" in stopped.everything()
    again = stopped.erase("--session", "sess-1")
    assert (again["erasure"], again["total"], again["days"]) == (done["erasure"], 0, [str(day(START))])


def test_a_user_is_erased_as_well_and_the_text_form_says_what_was_where(stopped: Stopped) -> None:
    stopped.capsys.readouterr()
    assert main(["--config", str(stopped.config), "erase", "--user", "u-sess-1"]) == Exit.DONE
    printed = stopped.capsys.readouterr().out
    assert "shards    lost 0 clicks, 1 impressions, 0 pending, 0 quarantine, 2 queries, 3 seen" in printed
    assert "u-sess-1" not in printed
    assert b"u-sess-1" not in stopped.everything()


def test_a_run_that_is_killed_is_finished_by_the_next(stopped: Stopped, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as broken, pytest.raises(Killed):
        broken.setattr(command, "erase_lake", kill)
        stopped.erase("--session", "sess-1")
    [tombstone] = stopped.data.glob("erasures/*.json")
    assert json.loads(tombstone.read_text())["state"] == "started"
    assert stopped.erase("--session", "sess-1")["state"] == "done"
    assert json.loads(tombstone.read_text())["state"] == "done"


def test_an_outbox_in_use_is_incomplete_and_a_free_one_is_erased(stopped: Stopped) -> None:
    outbox = Outbox(stopped.data / "outbox" / "serving", 1_000_000, 60.0)
    outbox.append([Line(line, "sess-1", 0.0) for line in visits("sess-1")])
    found = stopped.erase("--session", "sess-1", code=Exit.INCOMPLETE)
    assert (found["state"], found["in_use"]) == ("started", [str(outbox.folder)])
    outbox.close()
    found = stopped.erase("--session", "sess-1")
    assert (found["state"], found["outbox_lines"], found["in_use"]) == ("done", 4, [])


def test_two_erasures_at_once_are_refused(stopped: Stopped) -> None:
    (stopped.data / "erasures").mkdir()
    with (stopped.data / "erasures" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["--config", str(stopped.config), "erase", "--session", "sess-1"]) == Exit.BUSY


def test_what_learned_from_those_days_is_listed(stopped: Stopped) -> None:
    def publish(kind: str, **meta: Any) -> Path:
        made = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
        root = stopped.data / "artifacts"
        return artifacts.publish(root, kind, lambda folder: (folder / "x").touch(), meta, lambda: made).path

    knows = publish("predictor", as_of="2020-09-14", days=14)
    older = publish("predictor", as_of="2020-09-13", days=14)
    policy = publish("policy", start="sft")
    for predictor in (older, knows):
        registry.publish(stopped.data, policy=policy, predictor=predictor)
    learned = stopped.erase("--session", "sess-1")["learned"]
    assert learned["artifacts"] == [{"kind": "predictor", "artifact": knows.name, "days": ["2020-08-31", "2020-09-13"]}]
    assert learned["releases"] == [{"release": "r0001", "parts": ["predictor"]}]
    hide(knows)
    learned = stopped.erase("--session", "sess-1")["learned"]
    assert (learned["artifacts"], learned["releases"]) == ([], []), "what is being pruned is gone"


def test_an_isolated_replay_knows_what_was_erased(stopped: Stopped, tmp_path: Path) -> None:
    stopped.erase("--session", "sess-1")
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(visits("sess-1", "sess-2")))
    settings = StreamsSettings.model_validate({"data": {"dir": stopped.data}, "kafka": {"partitions": 1}})
    summary = replay_isolated(tmp_path / "log.jsonl", [], tmp_path / "out", "embedded", settings)
    assert summary["counted"] == 3


def test_a_running_worker_erases_drops_what_comes_again_and_a_rebuild_does_not_bring_it_back(
    bootstrap: str, unique: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = make_settings(bootstrap, unique, tmp_path / "data", retention_days=30)
    config = write_config(settings, tmp_path / "queryloop.toml")
    create_topics(bootstrap, settings.kafka)
    names = [f"sess-{number}" for number in range(6)]

    def run(*arguments: str) -> int:
        return main(["--config", str(config), *arguments])

    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, emit(settings, visits(*names)))
        assert run("erase", "--session", "sess-3") == Exit.DONE
        shards = await_applied(worker, settings, emit(settings, visits("sess-3")))
        assert sum(shard["erased"] for shard in shards) == 8
        assert run("verify") == Exit.DONE, capsys.readouterr().out
        assert f"{SECRET} sess-3" not in get(settings, "/v1/successors?query=shoes")
        assert json.loads(get(settings, f"/v1/successors?query={SECRET}%20sess-3"))["total"] == 0
        worker.stop()
    for path in shard_path(settings.data.dir, 0).parent.iterdir():
        path.unlink()
    shutil.rmtree(settings.data.dir / "lake", ignore_errors=True)
    with WorkerProcess(settings, tmp_path / "rebuilt.log") as worker:
        positions = {shard["partition"]: shard["next_offset"] for shard in shards}
        rebuilt = await_applied(worker, settings, positions)
        assert sum(shard["counted"] for shard in rebuilt) == 3 * (len(names) - 1)
        assert sum(shard["erased"] for shard in rebuilt) == 8
        assert run("verify") == Exit.DONE
        worker.stop()
