"""The timetable: the daemon that requests jobs at their times and runs what is requested, one of a kind at a time.

A due time only writes a request into the ledger, as `queryloop run` does; one poll a second starts requested runs. So there is
one way for a run to start, missed times become one request, and whoever requested a run can watch the ledger. The ledger also has
when due times were last dealt with, so a daemon that starts knows what was missed while none ran.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator

from streams.runtime.processes import Child
from streams.runtime.settings import is_loopback
from trainers.jobs.due_times import check_line, check_zone, last_due, next_due
from trainers.jobs.ledger import KINDS, Kind, Ledger, Run
from trainers.jobs.processes import hold_kind, record_end, start_job

if TYPE_CHECKING:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = logging.getLogger(__name__)
OFF = "off"
STOP_GRACE_S = 20.0


class TimetableSettings(BaseModel, frozen=True, extra="forbid"):
    """Section `timetable`: cron lines (minute hour day-of-month month weekday, in the zone below), or "off": only on request.

    As in cron, weekdays 0 and 7 are Sunday and names are allowed; where a day of the month and a weekday are both given, either
    is enough. Each local time is due once: one that the start of summer time leaves out is due when the clock is put forward, one
    that its end repeats the first time."""

    ctr: str = Field(default="0 3 * * *", description="when the click predictor and the judge are trained")
    index: str = Field(default="30 2 * * *", description="when the co-occurrence index is built")
    policy: str = Field(default="0 5 * * sun", description="when the policy is aligned")
    prune: str = Field(default="30 1 * * *", description="when artifacts and releases that nobody needs are removed (`prune`)")
    zone: str = Field(default="UTC", description="time zone of these lines, such as Europe/Berlin")
    misfire_grace_s: int = Field(
        default=3 * 86_400,
        ge=1,
        le=366 * 86_400,
        description="seconds: where due times were missed, because the trainers were down or the machine slept, the job is run "
        "once if the last of them is no older than this",
    )
    poll_s: float = Field(default=1.0, gt=0, le=60, description="seconds between two looks for requested runs")
    host: str = Field(
        default="127.0.0.1", description="address of the trainers' HTTP (/metrics, /healthz); another than loopback needs a key"
    )
    port: int = Field(default=6067, ge=0, le=65535, description="port of the trainers' HTTP, 0 for any free one")
    key: SecretStr | None = Field(default=None, description="key that the trainers' /metrics requires")
    publish_index: bool = Field(default=True, description="whether a new index goes live at once, with the policy that is live")

    @field_validator("ctr", "index", "policy", "prune")
    @classmethod
    def _check_cron(cls, line: str) -> str:
        return line if line == OFF else check_line(line)

    @field_validator("zone")
    @classmethod
    def _check_zone(cls, zone: str) -> str:
        return check_zone(zone)

    @model_validator(mode="after")
    def _require_key_off_loopback(self) -> Self:
        if self.key is None and not is_loopback(self.host):
            raise ValueError(f"timetable.host = {self.host} is not loopback: set timetable.key, or keep 127.0.0.1")
        return self

    def line(self, kind: Kind) -> str:
        return str(getattr(self, kind))


Start = Callable[[Ledger, Run, Path], Child]


@dataclass
class Jobs:
    """The job processes of this daemon: at most one of each kind."""

    ledger: Ledger
    data_dir: Path
    start: Start = start_job
    children: dict[Kind, tuple[int, Child]] = field(default_factory=dict)

    def fail_lost_runs(self) -> None:
        """Record runs of an earlier daemon that are still marked as running as failed, unless their kind's lock is held."""
        for kind in KINDS:
            with hold_kind(self.data_dir, kind) as mine:
                for run in self.ledger.fail_lost(kind) if mine else ():
                    log.warning("event=run_lost run=%d kind=%s", run, kind)

    def poll(self) -> None:
        """Write the heartbeat, record the jobs that ended, start requested runs whose kind is idle."""
        self.ledger.beat(os.getpid())
        for kind, (run, child) in list(self.children.items()):
            if child.returncode is not None:
                del self.children[kind]
                ended = record_end(self.ledger, run, child)
                log.info("event=run_ended run=%d kind=%s state=%s code=%s", run, kind, ended.state, child.returncode)
        for request in self.ledger.requested():
            if request.kind not in self.children:
                child = self.start(self.ledger, request, self.data_dir)
                self.children[request.kind] = (request.id, child)
                log.info("event=run_started run=%d kind=%s pid=%d log=%s", request.id, request.kind, child.pid, child.log)

    def stop(self) -> None:
        """End every job process and record it, and remove the heartbeat."""
        for kind, (run, child) in list(self.children.items()):
            child.stop(STOP_GRACE_S)
            record_end(self.ledger, run, child)
            del self.children[kind]
            log.info("event=run_stopped run=%d kind=%s", run, kind)
        self.ledger.stop_beating(os.getpid())


@dataclass(frozen=True)
class DueTimes:
    """When each kind of job is due, and the requests that follow from it; `clock` gives seconds since the epoch."""

    settings: TimetableSettings
    ledger: Ledger
    clock: Callable[[], float] = time.time

    def kinds(self) -> list[Kind]:
        """Return the kinds of jobs that have due times."""
        return [kind for kind in KINDS if self.settings.line(kind) != OFF]

    def next(self, kind: Kind, after: datetime) -> datetime:
        return next_due(self.settings.line(kind), self.settings.zone, after)

    def request(self, kind: Kind) -> None:
        """Request a run, and note that all due times up to now are dealt with."""
        log.info("event=run_requested kind=%s run=%d", kind, self.ledger.request(kind))
        self._note(kind)

    def make_up(self) -> None:
        """Request one run of each kind whose due time passed while no daemon ran, unless that is too long ago."""
        for kind in self.kinds():
            missed = self._missed(kind)
            if missed is None:
                self._note(kind)
            elif self.clock() - missed > self.settings.misfire_grace_s:
                log.warning(
                    "event=due_time_missed kind=%s due=%s grace_s=%d", kind, _shown(missed), self.settings.misfire_grace_s
                )
                self._note(kind)
            else:
                log.info("event=due_time_made_up kind=%s due=%s", kind, _shown(missed))
                self.request(kind)

    def _missed(self, kind: Kind) -> float | None:
        """Return the last due time since the ledger's note for which no run was requested, None where there is none."""
        since = self.ledger.planned_since(kind, self._line(kind))
        if since is None:
            return None  # a new timetable: nothing was due before it was made
        due = last_due(self.settings.line(kind), self.settings.zone, datetime.fromtimestamp(self.clock(), UTC))
        last = next((run.requested_at for run in self.ledger.runs(kind, limit=1)), 0.0)
        return due.timestamp() if due is not None and due.timestamp() > max(since, last) else None

    def _note(self, kind: Kind) -> None:
        self.ledger.plan(kind, self._line(kind))

    def _line(self, kind: Kind) -> str:
        return f"{self.settings.line(kind)} {self.settings.zone}"


def read_metrics(due_times: DueTimes, data_dir: Path) -> bytes:
    """Return the metrics of the ledger and the timetable as they are now, in Prometheus' text format."""
    from streams.runtime.metric_families import read_process
    from trainers.jobs.metrics import render_metrics

    now = due_times.clock()
    due = {kind: due_times.next(kind, datetime.fromtimestamp(now, UTC)) for kind in due_times.kinds()}
    pruned = due_times.ledger.add_up("prune", "bytes")
    return render_metrics(due_times.ledger.count_runs(), due, pruned, read_process(data_dir), now)


def plan(due_times: DueTimes, poll: Callable[[], None]) -> AsyncIOScheduler:
    """Return the scheduler, not yet started, with a request for each kind at its times, and the poll."""
    from apscheduler.schedulers.asyncio import AsyncIOScheduler
    from apscheduler.triggers.base import BaseTrigger

    class DueTimesTrigger(BaseTrigger):  # type: ignore[misc]
        def __init__(self, kind: Kind) -> None:
            self._kind = kind

        def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
            return due_times.next(self._kind, previous or now)

    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # else it logs every poll
    # asyncio keeps everything on the main thread: a job's process dies with the thread that started it.
    scheduler = AsyncIOScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})
    settings = due_times.settings

    async def ask(kind: Kind) -> None:
        due_times.request(kind)

    async def look() -> None:
        poll()

    for kind in due_times.kinds():
        scheduler.add_job(ask, DueTimesTrigger(kind), [kind], id=kind, misfire_grace_time=settings.misfire_grace_s)
    scheduler.add_job(look, "interval", seconds=settings.poll_s, id="poll", misfire_grace_time=None)
    return scheduler


async def run_until_signal(settings: TimetableSettings, jobs: Jobs) -> None:
    """Run until SIGTERM or SIGINT; then end the job processes and record them. Raises PortBusy."""
    from trainers.jobs.http import listening, make_app

    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    due_times = DueTimes(settings, jobs.ledger)
    app = make_app(settings.key, lambda: read_metrics(due_times, jobs.data_dir), jobs.ledger.daemon_lives)
    async with listening(app, settings.host, settings.port) as (host, port):
        log.info("event=listening host=%s port=%d", host, port)
        await _run_jobs(due_times, jobs, stopping)


async def _run_jobs(due_times: DueTimes, jobs: Jobs, stopping: asyncio.Event) -> None:
    scheduler = plan(due_times, jobs.poll)
    scheduler.start()
    jobs.fail_lost_runs()
    due_times.make_up()
    jobs.poll()
    log.info("event=timetable_started %s", " ".join(f'{kind}="{due_times.settings.line(kind)}"' for kind in KINDS))
    try:
        await stopping.wait()
    finally:
        scheduler.shutdown(wait=False)
        jobs.stop()
        log.info("event=timetable_stopped")


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def run(settings: Any) -> None:
    """Run the daemon (`python -m trainers`). `settings` has the sections data and timetable."""
    folder: Path = settings.data.dir
    asyncio.run(run_until_signal(settings.timetable, Jobs(Ledger(folder / "ledger.sqlite"), folder)))
