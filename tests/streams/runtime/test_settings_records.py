"""The record of a process's settings: file, time, hash and values without secrets, and what differs from them now."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from pydantic import BaseModel, SecretStr

from streams.brokers.topics import KafkaSettings
from streams.runtime.settings import RECORD, DataSettings, load_settings
from streams.runtime.settings_records import find_differences, read_record, read_records, record_path, record_settings


class Section(BaseModel, frozen=True, extra="forbid"):
    n: int = 1
    key: SecretStr | None = None
    where: Path = Path("here")


class Root(BaseModel, frozen=True, extra="forbid"):
    data: DataSettings = DataSettings()
    kafka: KafkaSettings = KafkaSettings()
    serving: Section = Section()


def test_a_process_records_and_logs_its_file_time_and_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "q.toml"
    file.write_text("[serving]\nn = 2\n")
    settings = load_settings(Root, file, {})
    with caplog.at_level(logging.INFO):
        record = record_settings("serving", settings, tmp_path, file, {}, clock=lambda: 1_700_000_000.0)
    assert (record.file, record.pid, record.read_at.isoformat()) == (str(file), os.getpid(), "2023-11-14T22:13:20+00:00")
    assert record.values["serving"]["n"] == 2
    assert f"event=settings process=serving file={file} read_at=2023-11-14T22:13:20+00:00 hash={record.hash}" in caplog.text
    assert read_record(tmp_path, "serving") == record
    assert read_records(tmp_path) == [record]


def test_no_secret_is_in_the_record_and_the_hash_does_not_depend_on_it(tmp_path: Path) -> None:
    hashes = set()
    for secret in ("hunter2hunter2", "another-secret"):
        settings = Root(serving=Section(key=SecretStr(secret)))
        hashes.add(record_settings("serving", settings, tmp_path, None, {}).hash)
        assert secret not in record_path(tmp_path, "serving").read_text()
    assert len(hashes) == 1


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    record = record_settings("trainers", Root(), tmp_path, None, {})
    assert find_differences(record, Root()) == {}
    changed = Root(serving=Section(n=3, key=SecretStr("hunter2hunter2")), kafka=KafkaSettings(partitions=8))
    found = find_differences(record, changed)
    assert found["serving.n"] == (1, 3)
    assert found["kafka.partitions"] == (4, 8)
    assert set(found) == {"serving.n", "serving.key", "kafka.partitions"}
    assert "hunter2" not in str(found)


def test_a_process_that_another_one_started_records_what_that_one_has_read(tmp_path: Path) -> None:
    parent = record_settings("up", Root(serving=Section(n=5)), tmp_path, None, {}, clock=lambda: 1e9)
    environ = {RECORD: str(record_path(tmp_path, "up"))}
    child = record_settings("serving", load_settings(Root, None, environ), tmp_path, None, environ)
    assert (child.process, child.values, child.read_at, child.hash) == ("serving", parent.values, parent.read_at, parent.hash)


def test_a_damaged_record_is_none(tmp_path: Path) -> None:
    record_path(tmp_path, "serving").parent.mkdir()
    record_path(tmp_path, "serving").write_text("{")
    assert read_record(tmp_path, "serving") is None
    assert read_records(tmp_path) == []
