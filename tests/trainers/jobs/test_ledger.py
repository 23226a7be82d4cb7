"""The ledger: requests, runs and their ends, seen by several processes at a time; the daemon's heartbeat."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.jobs.ledger import KINDS, Kind, Ledger, LedgerError, State


class Clock:
    """A time that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", clock)


def test_a_run_is_requested_started_and_finished(ledger: Ledger, clock: Clock) -> None:
    number = ledger.request("ctr")
    assert (ledger.run(number).state, ledger.run(number).requested_at) == (State.REQUESTED, 1_000.0)
    clock.now = 1_001.5
    begun = ledger.start(number, pid=42)
    assert (begun.state, begun.started_at, begun.pid, begun.ended) == (State.RUNNING, 1_001.5, 42, False)
    clock.now = 1_010.0
    ledger.finish(number, State.SUCCEEDED, {"detail": "auc 0.7", "auc": 0.7})
    ended = ledger.run(number)
    assert (ended.state, ended.ended_at, ended.outcome, ended.ended) == (
        State.SUCCEEDED,
        1_010.0,
        {"detail": "auc 0.7", "auc": 0.7},
        True,
    )


def test_a_second_request_joins_the_one_that_waits_but_not_the_one_that_runs(ledger: Ledger) -> None:
    first = ledger.request("index")
    assert ledger.request("index") == first
    assert ledger.request("policy") != first
    ledger.start(first, pid=1)
    assert ledger.request("index") != first


def test_a_run_starts_once(ledger: Ledger) -> None:
    number = ledger.request("ctr")
    ledger.start(number, pid=1)
    with pytest.raises(LedgerError, match=f"run {number} is not waiting"):
        ledger.start(number, pid=2)


def test_the_first_end_is_kept(ledger: Ledger) -> None:
    number = ledger.request("ctr")
    ledger.start(number, pid=1)
    ledger.finish(number, State.FAILED, {"detail": "ValueError: no"})
    ledger.finish(number, State.SUCCEEDED, {"detail": "too late"})
    assert (ledger.run(number).state, ledger.run(number).outcome) == (State.FAILED, {"detail": "ValueError: no"})


def test_lost_runs_are_failed_for_their_kind_alone(ledger: Ledger) -> None:
    lost, other, waiting = ledger.request("ctr"), ledger.request("index"), None
    ledger.start(lost, pid=1)
    ledger.start(other, pid=2)
    waiting = ledger.request("ctr")
    assert ledger.fail_lost("ctr") == [lost]
    assert [ledger.run(one).state for one in (lost, other, waiting)] == [State.FAILED, State.RUNNING, State.REQUESTED]


def test_an_unknown_run_and_an_unknown_kind_are_refused(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="no run 7"):
        ledger.run(7)
    with pytest.raises(LedgerError, match="jobs are ctr, index, policy"):
        ledger.request("everything")  # type: ignore[arg-type]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match=r"ledger\.sqlite.*move it away"):
        Ledger(path)


def test_the_daemon_is_alive_while_its_heartbeat_is_fresh(ledger: Ledger, clock: Clock) -> None:
    assert not ledger.daemon_lives()
    ledger.beat(pid=5)
    clock.now += 9.9
    assert ledger.daemon_lives()
    clock.now += 0.2
    assert not ledger.daemon_lives()
    ledger.beat(pid=5)
    ledger.stop_beating(pid=4)
    assert ledger.daemon_lives()
    ledger.stop_beating(pid=5)
    assert ledger.heartbeat() is None


def test_a_daemon_that_was_killed_is_not_alive_though_its_heartbeat_is_fresh(ledger: Ledger) -> None:
    with subprocess.Popen(["sleep", "60"]) as daemon:
        ledger.beat(daemon.pid)
        assert ledger.daemon_lives()
        daemon.kill()
        daemon.wait()
        assert not ledger.daemon_lives()


def test_another_process_of_the_same_number_is_not_the_daemon(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.jobs.ledger.find_start", lambda pid: 12345.0)
    ledger.beat(os.getpid())
    assert not ledger.daemon_lives()


def test_of_a_daemon_in_another_container_its_heartbeat_tells(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as there:
        there.setattr("trainers.jobs.ledger.name_machine", lambda: "trainers pid:[1]")
        there.setattr("trainers.jobs.ledger.find_start", lambda pid: 12345.0)
        ledger.beat(1)
    assert ledger.daemon_lives()


def test_the_newest_runs_come_first(ledger: Ledger) -> None:
    numbers = []
    for kind in ("ctr", "index", "ctr"):
        numbers.append(ledger.request(kind))  # type: ignore[arg-type]
        ledger.start(numbers[-1], pid=1)
    assert [run.id for run in ledger.runs()] == numbers[::-1]
    assert [run.id for run in ledger.runs("ctr", limit=1)] == [numbers[2]]


def test_many_at_a_time_ask_for_one_run(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as threads:
        numbers = set(threads.map(lambda _: Ledger(ledger.path).request("policy"), range(24)))
    assert len(numbers) == 1


steps = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(["request", "start", "finish"])), max_size=30)


@settings(deadline=None, max_examples=40)
@given(steps)
def test_a_kind_never_has_two_waiting_runs(tmp_path_factory: pytest.TempPathFactory, taken: list[tuple[Kind, str]]) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")
    ids: set[int] = set()
    for kind, step in taken:
        mine = {state: [run.id for run in ledger.runs(kind) if run.state is state] for state in State}
        if step == "request":
            ids.add(ledger.request(kind))
        elif step == "start" and mine[State.REQUESTED]:
            ledger.start(mine[State.REQUESTED][0], pid=1)
        elif step == "finish" and mine[State.RUNNING]:
            ledger.finish(mine[State.RUNNING][0], State.SUCCEEDED, {})
        assert len(ledger.requested()) == len({run.kind for run in ledger.requested()})
    assert {run.id for run in ledger.runs(limit=100)} == ids


def test_a_run_that_begins_at_once_is_no_request_that_a_daemon_could_take(ledger: Ledger) -> None:
    begun = ledger.begin("prune", 42)
    assert (begun.state, begun.pid, begun.started_at) == (State.RUNNING, 42, begun.requested_at)
    assert ledger.requested() == []
    with pytest.raises(LedgerError, match="no job"):
        ledger.begin("bake", 42)  # type: ignore[arg-type]


def test_running_runs_are_listed_the_first_one_first(ledger: Ledger, clock: Clock) -> None:
    waiting = ledger.request("ctr")
    first, second = ledger.begin("policy", 1), ledger.begin("index", 1)
    ledger.finish(ledger.begin("prune", 1).id, State.SUCCEEDED, {})
    assert [one.id for one in ledger.running()] == [first.id, second.id]
    clock.now += 1
    ledger.start(waiting, 1)
    assert [one.id for one in ledger.running()] == [first.id, second.id, waiting]


def test_a_figure_is_added_up_over_the_runs_that_have_it(ledger: Ledger) -> None:
    assert ledger.add_up("prune", "bytes") == 0
    for outcome in ({"bytes": 5}, {"bytes": 7, "detail": "x"}, {"detail": "without"}):
        ledger.finish(ledger.begin("prune", 1).id, State.SUCCEEDED, outcome)
    ledger.finish(ledger.begin("ctr", 1).id, State.SUCCEEDED, {"bytes": 100})
    assert ledger.add_up("prune", "bytes") == 12


def test_a_run_is_requested_with_options_and_one_with_others_is_another_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    plain = ledger.request("policy")
    forced = ledger.request("policy", {"force": True, "from_base": True})
    assert forced != plain
    assert ledger.request("policy", {"from_base": True, "force": True}) == forced
    assert (ledger.options(plain), ledger.options(forced)) == ({}, {"force": True, "from_base": True})
    assert ledger.request("policy") == plain
