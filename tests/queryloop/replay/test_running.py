"""A replay to a running system: what is too old there is said before it is sent, and what became of the rest afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queryloop.cli import main
from queryloop.exits import Exit
from queryloop.replay.running import AgeCheck, RunningSystem, subtract
from queryloop.up.worker_process import WorkerProcess
from streams.brokers.topics import create_topics, end_offsets
from streams.events.line_decoder import parse_line
from streams.events.rules import CountingRules
from streams.events.schema import Reason, Reject
from streams.store.shard import Shard
from streams.worker.settings import StreamsSettings
from tests.queryloop.commands.test_verify import write_config
from tests.streams.worker.test_main import await_applied, emit, make_settings
from tests.support.command_table import check_answer
from tests.support.logs import NOW, START, click, feed, impression, query

DAY = 86_400.0
OLD = [impression("i1", START - 90 * DAY, "L1"), query("q1", START - 89 * DAY)]
NEW = [impression("i2", START, "L2"), click("c2", START + 1, "L2")]


class System:
    """A worker that has seen an event of START, and the command line beside it."""

    def __init__(self, settings: StreamsSettings, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.settings, self.config, self.capsys = settings, config, capsys

    def replay(self, log: Path, *arguments: str) -> tuple[int, str, str]:
        code = main(["--config", str(self.config), "replay", str(log), *arguments])
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def sent(self) -> int:
        return sum(end_offsets(str(self.settings.kafka.bootstrap), self.settings.kafka.topic).values())


@pytest.fixture
def system(bootstrap: str, unique: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[System]:
    settings = make_settings(bootstrap, unique, tmp_path / "data", retention_days=30)
    create_topics(bootstrap, settings.kafka)
    with WorkerProcess(settings, tmp_path / "worker.log") as worker:
        await_applied(worker, settings, emit(settings, [query("live", START)]))
        yield System(settings, write_config(settings, tmp_path / "queryloop.toml"), capsys)


def write(folder: Path, *lines: bytes) -> Path:
    (folder / "log.jsonl").write_bytes(b"\n".join(lines))
    return folder / "log.jsonl"


def test_what_is_too_old_for_the_system_is_said_and_nothing_is_sent(system: System, tmp_path: Path) -> None:
    log, before = write(tmp_path, *OLD, *NEW), system.sent()
    code, out, _ = system.replay(log, "--check")
    assert code == Exit.FAILED
    assert "to quarantine: too_old 2" in out and "compared with the worker at http://" in out
    assert "log.jsonl line 1: too_old: ts: more than 30 days before the latest event of the running system" in out
    code, _, err = system.replay(log)
    assert code == Exit.FAILED
    assert "2 of 4 lines are older than the 30 days that the running system keeps; nothing was sent" in err
    assert system.sent() == before
    assert system.replay(log, "--check", "--isolated")[0] == Exit.DONE


def test_what_was_sent_late_all_the_same_ends_with_another_code(system: System, tmp_path: Path) -> None:
    code, out, err = system.replay(write(tmp_path, *OLD, *NEW), "--allow-late", "--json")
    assert (code, "2 lines are too old" in err) == (Exit.FAILED, True)
    check_answer("replay", code, json.loads(out))
    outcome = json.loads(out)["outcome"]
    assert outcome == {
        "applied": True, "events": 4, "counted": 2, "duplicates": 0, "pending": 0, "quarantined": {"too_old": 2}
    }  # fmt: skip


def test_what_counted_is_reported(system: System, tmp_path: Path) -> None:
    code, out, _ = system.replay(write(tmp_path, *NEW))
    assert (code, "meanwhile the worker counted 2, duplicates 0, pending 0, quarantined: none" in out) == (Exit.DONE, True)
    code, out, _ = system.replay(write(tmp_path, *NEW))
    assert (code, "counted 0, duplicates 2" in out) == (Exit.DONE, True)


def test_an_empty_log_is_sent_to_a_running_system(system: System, tmp_path: Path) -> None:
    for arguments in ([], ["--check"]):
        code, out, _ = system.replay(write(tmp_path, b"\xef\xbb\xbf", b" \t"), *arguments)
        assert (code, "no line to send" in out) == (Exit.DONE, True)


def test_a_log_without_an_event_is_not_sent(system: System, tmp_path: Path) -> None:
    before = system.sent()
    code, _, err = system.replay(write(tmp_path, b'{"search": "x"}', b'{"search": "y"}'))
    assert code == Exit.FAILED
    assert "no line is an event; nothing was sent" in err and "say with --mapping FILE" in err
    assert system.sent() == before


LOGS = st.lists(st.tuples(st.integers(0, 90), st.sampled_from("ab")), max_size=30)


@settings(deadline=None, max_examples=50)
@given(seen=st.none() | st.integers(0, 90), drawn=LOGS)
def test_the_foresight_is_what_a_shard_refuses(
    seen: int | None, drawn: list[tuple[int, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = [query(f"e{number}", START + days * DAY, session_id=name) for number, (days, name) in enumerate(drawn)]
    shard = Shard.open(tmp_path_factory.mktemp("shard") / "s.duckdb", CountingRules())
    try:
        if seen is not None:
            feed(shard, [query("seen", START + seen * DAY)])
        latest_us = shard.totals().latest_us
        status: dict[str, Any] = {"latest_ts": None if latest_us is None else latest_us / 1e6}
        ages = AgeCheck(RunningSystem("", 30, 1, {0: status}), round(NOW * 1e6))
        events = [event for line in lines if not isinstance(event := parse_line(line), Reject)]
        foreseen = [event.event_id for event in events if ages.find_fault(event)]
        if lines:
            feed(shard, lines, start=1 if seen is not None else 0)
        assert shard.quarantine()["event_id"].to_pylist() == foreseen
        assert set(shard.quarantine()["reason"].to_pylist()) <= {Reason.TOO_OLD}
    finally:
        shard.close()


def test_an_outcome_is_what_the_totals_gained() -> None:
    none = {"events": 0, "counted": 0, "duplicates": 0, "pending": 0, "quarantined": {}}
    before = {0: none | {"events": 5, "pending": 2, "quarantined": {"invalid": 1}}}
    after = {0: none | {"events": 9, "pending": 1, "quarantined": {"invalid": 1, "orphan_click": 1}}, 1: none | {"counted": 3}}
    outcome = subtract(before, after, applied=True)
    assert (outcome.events, outcome.counted, outcome.pending, outcome.quarantined) == (4, 3, -1, {"orphan_click": 1})
