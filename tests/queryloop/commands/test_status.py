"""`queryloop status`: a shard whose file another process has open is shown, with that process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from queryloop import cli
from queryloop.exits import Exit
from queryloop.up.worker_process import WorkerProcess, read_status
from streams.brokers.broker import Broker
from streams.brokers.topics import create_topics
from streams.runtime.processes import free_port
from streams.store.held_shards import shard_path
from streams.store.shard import CountingRules, Shard
from tests.queryloop.commands.test_verify import write_config
from tests.streams.worker.test_main import APPLIED_S, make_settings
from tests.streams.worker.test_waiting_shards import analyst
from tests.support.command_table import check_answer


def test_a_shard_that_waits_for_another_process_is_shown_with_it(
    broker: Broker, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUERYLOOP_SERVING_PORT", str(free_port()))
    data = tmp_path / "data"
    settings = make_settings(broker.bootstrap, unique, data)
    create_topics(broker.bootstrap, settings.kafka)
    Shard.open(shard_path(data, 1), CountingRules(retention_days=0)).close()
    words = ["--config", str(write_config(settings, tmp_path / "queryloop.toml")), "status"]
    with analyst(shard_path(data, 1)) as pid, WorkerProcess(settings, tmp_path / "worker.log") as worker:
        worker.child.wait_until(lambda: bool((read_status(settings) or {}).get("waiting")), APPLIED_S, "a shard waits")
        assert cli.main(words) == Exit.UNAVAILABLE
        said = capsys.readouterr().out
        assert any(
            line.startswith("shard 1   waits: its file is open in another process: ") and f"PID {pid}" in line
            for line in said.splitlines()
        ), said
        code = cli.main([*words, "--json"])
        answer = json.loads(capsys.readouterr().out)
        check_answer("status", code, answer)
        (waiting,) = answer["streams"]["waiting"]
        assert waiting["shard"] == 1 and f"PID {pid}" in waiting["error"]
