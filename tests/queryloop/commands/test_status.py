"""`queryloop status`: a shard that waits for another process, a stack that is starting, and one that was given `--broker`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from queryloop import cli
from queryloop.commands.status import NOT_RUNNING, STARTING, read_status
from queryloop.exits import Exit
from queryloop.settings import Settings, read_settings, read_settings_alone
from queryloop.up.stack import Stack
from queryloop.up.worker_process import WorkerProcess
from queryloop.up.worker_process import read_status as read_worker_status
from streams.brokers.broker import Broker
from streams.brokers.topics import KafkaSettings, create_topics
from streams.runtime.processes import free_port
from streams.runtime.settings import DataSettings
from streams.runtime.settings_records import record_settings
from streams.store.held_shards import shard_path
from streams.store.shard import CountingRules, Shard
from streams.worker.settings import WorkerSettings
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
        worker.child.wait_until(lambda: bool((read_worker_status(settings) or {}).get("waiting")), APPLIED_S, "a shard waits")
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


def settings_in(folder: Path) -> Settings:
    base = Settings(data=DataSettings(dir=folder), worker=WorkerSettings(port=free_port()), kafka=KafkaSettings(port=0))
    free = {name: getattr(base, name).model_copy(update={"port": free_port()}) for name in ("serving", "timetable")}
    return base.model_copy(update=free)


def errors(settings: Settings) -> set[str]:
    found = read_status(settings)
    return {found[room]["error"] for room in ("streams", "serving", "trainers")}


def test_rooms_that_up_has_not_started_yet_are_not_said_to_need_up(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    assert errors(settings) == {NOT_RUNNING}
    record_settings("up", settings, tmp_path)
    assert errors(settings) == {STARTING}


def test_the_record_of_an_up_that_has_ended_says_nothing(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    record_settings("up", settings, tmp_path, clock=lambda: 1.0)  # older than the process that has its number now
    assert errors(settings) == {NOT_RUNNING}


def test_a_broker_that_an_option_chose_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for section in ("WORKER", "SERVING", "TIMETABLE"):
        monkeypatch.setenv(f"QUERYLOOP_{section}_PORT", str(free_port()))
    monkeypatch.setenv("QUERYLOOP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("QUERYLOOP_KAFKA_PORT", "0")
    monkeypatch.setenv("QUERYLOOP_KAFKA_BROKER", "kafka")
    options = Namespace(config=None, broker="embedded")
    settings, alone = read_settings(options), read_settings_alone(options)
    assert (settings.kafka.broker, alone.kafka.broker) == ("embedded", "kafka")
    with Stack(settings, rooms=(), print_line=print, as_read=alone):
        assert [record["differences"] for record in read_status(alone)["settings"]] == [{}]
