"""The timetable: due times and requests become runs, one of a kind at a time; time and processes are the test's own."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.prometheus import read_value
from trainers.jobs.ledger import Kind, Ledger, Run, State
from trainers.jobs.processes import hold_kind
from trainers.jobs.timetable import DueTimes, Jobs, TimetableSettings, plan, read_metrics


@dataclass
class FakeChild:
    """A process that ends when the test says so."""

    pid: int
    log: Path
    returncode: int | None = None
    stopped: bool = False

    def stop(self, grace_s: float) -> int:
        self.stopped = True
        self.returncode = -15
        return -15


class Starter:
    """Stands in for `start_job`: marks the run as begun, as a job process does."""

    def __init__(self) -> None:
        self.started: list[tuple[Kind, FakeChild]] = []

    def __call__(self, ledger: Ledger, run: Run, data_dir: Path) -> Any:
        child = FakeChild(1000 + run.id, data_dir / "job.log")
        ledger.start(run.id, child.pid)
        self.started.append((run.kind, child))
        return child


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite")


@pytest.fixture
def starter() -> Starter:
    return Starter()


@pytest.fixture
def jobs(ledger: Ledger, starter: Starter, tmp_path: Path) -> Jobs:
    return Jobs(ledger, tmp_path, starter)


def test_a_requested_run_starts_at_the_next_poll(jobs: Jobs, ledger: Ledger, starter: Starter) -> None:
    jobs.poll()
    assert starter.started == []
    ledger.request("ctr")
    jobs.poll()
    assert [kind for kind, _ in starter.started] == ["ctr"]
    assert ledger.daemon_lives()


def test_a_kind_runs_once_at_a_time_and_others_beside_it(jobs: Jobs, ledger: Ledger, starter: Starter) -> None:
    ledger.request("ctr")
    jobs.poll()
    second = ledger.request("ctr")
    ledger.request("index")
    jobs.poll()
    assert [kind for kind, _ in starter.started] == ["ctr", "index"]
    starter.started[0][1].returncode = 0
    jobs.poll()
    assert [kind for kind, _ in starter.started] == ["ctr", "index", "ctr"]
    assert ledger.run(second).state is State.RUNNING


def test_a_crashed_run_is_recorded_with_its_log(jobs: Jobs, ledger: Ledger, starter: Starter) -> None:
    number = ledger.request("policy")
    jobs.poll()
    starter.started[0][1].returncode = -11
    jobs.poll()
    assert ledger.run(number).state is State.FAILED
    assert "killed by signal 11" in ledger.run(number).outcome["detail"]
    assert "job.log" in ledger.run(number).outcome["detail"]


def test_a_new_daemon_fails_the_runs_of_a_killed_one(jobs: Jobs, ledger: Ledger, tmp_path: Path) -> None:
    lost, held = ledger.start(ledger.request("ctr"), pid=1).id, ledger.start(ledger.request("policy"), pid=2).id
    with hold_kind(tmp_path, "policy"):
        jobs.fail_lost_runs()
    assert (ledger.run(lost).state, ledger.run(held).state) == (State.FAILED, State.RUNNING)


def test_stopping_ends_the_running_jobs_and_the_heartbeat(jobs: Jobs, ledger: Ledger, starter: Starter) -> None:
    number = ledger.request("policy")
    jobs.poll()
    jobs.stop()
    assert starter.started[0][1].stopped
    assert ledger.run(number).state is State.FAILED
    assert not ledger.daemon_lives()


def scheduled(settings: TimetableSettings, ledger: Ledger) -> dict[str, Any]:
    return {job.id: job for job in plan(DueTimes(settings, ledger), lambda: None).get_jobs()}


def test_each_kind_has_its_times_in_the_zone_of_the_settings(ledger: Ledger) -> None:
    times = scheduled(
        TimetableSettings(ctr="15 3 * * *", index="off", prune="off", policy="0 5 * * 0", zone="Europe/Berlin"), ledger
    )
    assert set(times) == {"ctr", "policy", "poll"}
    thursday = datetime(2026, 1, 1, tzinfo=UTC)
    assert times["ctr"].trigger.get_next_fire_time(None, thursday) == datetime(2026, 1, 1, 2, 15, tzinfo=UTC)
    assert times["policy"].trigger.get_next_fire_time(None, thursday) == datetime(2026, 1, 4, 4, 0, tzinfo=UTC)


def test_missed_times_coalesce_and_one_instance_runs(ledger: Ledger) -> None:
    async def look() -> dict[str, Any]:
        scheduler = plan(DueTimes(TimetableSettings(misfire_grace_s=77), ledger), lambda: None)
        scheduler.start(paused=True)
        found = {job.id: (job.coalesce, job.max_instances, job.misfire_grace_time) for job in scheduler.get_jobs()}
        scheduler.shutdown(wait=False)
        return found

    found = asyncio.run(look())
    assert found["ctr"] == found["index"] == found["policy"] == (True, 1, 77)
    assert found["poll"][:2] == (True, 1)


def test_a_due_time_requests_a_run_once_however_many_were_missed(ledger: Ledger) -> None:
    async def run_late() -> None:
        due_times = DueTimes(TimetableSettings(ctr="* * * * *", index="off", prune="off", policy="off"), ledger)
        scheduler = plan(due_times, lambda: None)
        scheduler.start(paused=True)
        scheduler.modify_job("ctr", next_run_time=datetime.now(UTC) - timedelta(minutes=30))
        scheduler.resume()
        async with asyncio.timeout(10):
            while not ledger.requested():
                await asyncio.sleep(0.01)
        scheduler.shutdown(wait=False)

    asyncio.run(run_late())
    assert [run.kind for run in ledger.requested()] == ["ctr"]


SUNDAY = datetime(2026, 1, 4, 5, 0, tzinfo=UTC).timestamp()
HOUR, DAY = 3600.0, 86_400.0
WEEKLY = TimetableSettings(ctr="off", index="off", prune="off", policy="0 5 * * 0")


@dataclass
class Down:
    """Trainers that ran until one moment and start again at another; every moment is the test's."""

    folder: Path
    now: float = 0.0

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.folder / "ledger.sqlite", lambda: self.now)

    def start(self, at: float, settings: TimetableSettings = WEEKLY) -> list[Kind]:
        """Start a daemon; return the kinds of jobs that are requested now."""
        self.now = at
        DueTimes(settings, self.ledger, lambda: self.now).make_up()
        return [run.kind for run in self.ledger.requested()]

    def end_requested(self) -> None:
        for run in self.ledger.requested():
            self.ledger.finish(run.id, State.SUCCEEDED, {})


def test_a_time_missed_while_the_trainers_were_down_is_made_up_for_once(tmp_path: Path) -> None:
    trainers = Down(tmp_path)
    assert trainers.start(SUNDAY - DAY) == []
    assert trainers.start(SUNDAY + 1) == ["policy"]
    trainers.end_requested()
    assert trainers.start(SUNDAY + 60) == []
    assert trainers.start(SUNDAY + DAY) == []


def test_a_weekend_without_the_machine_does_not_cost_a_week(tmp_path: Path) -> None:
    trainers = Down(tmp_path)
    trainers.start(SUNDAY - 40 * HOUR)
    assert trainers.start(SUNDAY + 40 * HOUR) == ["policy"]


def test_a_time_that_was_missed_by_more_than_the_grace_is_left_to_the_next_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainers = Down(tmp_path)
    trainers.start(SUNDAY - DAY)
    assert trainers.start(SUNDAY + 3 * DAY + 1) == []
    assert "event=due_time_missed kind=policy due=2026-01-04T05:00:00+00:00" in caplog.text
    assert trainers.start(SUNDAY + 7 * DAY + 1) == ["policy"]


def test_months_of_missed_times_become_one_run(tmp_path: Path) -> None:
    nightly = TimetableSettings(ctr="0 3 * * *", index="off", prune="off", policy="off")
    trainers = Down(tmp_path)
    trainers.start(SUNDAY, nightly)
    assert trainers.start(SUNDAY + 100 * DAY, nightly) == ["ctr"]
    trainers.end_requested()
    assert trainers.start(SUNDAY + 100 * DAY + HOUR, nightly) == []


def test_a_first_start_and_a_changed_timetable_make_up_for_nothing(tmp_path: Path) -> None:
    trainers = Down(tmp_path)
    assert trainers.start(SUNDAY + HOUR) == []
    changed = WEEKLY.model_copy(update={"policy": "30 5 * * 0"})
    assert trainers.start(SUNDAY + 2 * HOUR, changed) == []
    assert trainers.start(SUNDAY + 3 * HOUR, WEEKLY.model_copy(update={"policy": "off"})) == []


def test_a_run_that_a_person_requested_after_the_missed_time_is_enough(tmp_path: Path) -> None:
    trainers = Down(tmp_path)
    trainers.start(SUNDAY - DAY)
    trainers.now = SUNDAY + HOUR
    trainers.ledger.request("policy")
    trainers.end_requested()
    assert trainers.start(SUNDAY + 2 * HOUR) == []


@pytest.mark.parametrize("line", ["every day", "61 * * * *", "* * * *", ""])
def test_a_line_that_is_no_cron_line_is_refused(line: str) -> None:
    with pytest.raises(ValidationError, match="index"):
        TimetableSettings(index=line)


def test_the_metrics_are_of_the_ledger_the_due_times_and_the_disk(tmp_path: Path) -> None:
    settings, now = TimetableSettings(ctr="0 3 * * *", index="off"), datetime(2026, 1, 1, 12, tzinfo=UTC)
    due_times = DueTimes(settings, Ledger(tmp_path / "ledger.sqlite"), now.timestamp)
    text = read_metrics(due_times, tmp_path / "not yet").decode()
    at = datetime(2026, 1, 2, 3, tzinfo=UTC).timestamp()
    assert read_value(text, "queryloop_job_next_due_timestamp_seconds", kind="ctr") == at
    assert read_value(text, "queryloop_job_next_due_timestamp_seconds", kind="index") is None
    assert (
        0 < (read_value(text, "queryloop_data_disk_free_bytes") or 0) <= (read_value(text, "queryloop_data_disk_size_bytes") or 0)
    )
