"""`queryloop status` beside a stack that is starting, and one that was given `--broker`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from queryloop.commands.status import NOT_RUNNING, STARTING, read_status
from queryloop.settings import Settings, read_settings, read_settings_alone
from queryloop.up.stack import Stack
from streams.brokers.topics import KafkaSettings
from streams.runtime.processes import free_port
from streams.runtime.settings import DataSettings
from streams.runtime.settings_records import record_settings
from streams.worker.settings import WorkerSettings


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
