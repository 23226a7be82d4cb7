"""The timetable: the daemon that requests jobs at their times and runs what is requested, one of a kind at a time.

A due time only writes a request into the ledger, as `queryloop run` does; one poll a second starts requested runs. So there is
one way for a run to start, missed times become one request, and whoever requested a run can watch the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, field_validator

from streams.runtime.processes import Child
from trainers.jobs.ledger import KINDS, Kind, Ledger, Run
from trainers.jobs.processes import hold_kind, record_end, start_job

if TYPE_CHECKING:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = logging.getLogger(__name__)
OFF = "off"
STOP_GRACE_S = 20.0


class TimetableSettings(BaseModel, frozen=True, extra="forbid"):
    """Section `timetable`: five-field cron lines in UTC (weekdays by name), or "off": the job runs only on request."""

    ctr: str = Field(default="0 3 * * *", description="when the click predictor and the judge are trained")
    index: str = Field(default="30 2 * * *", description="when the co-occurrence index is built")
    policy: str = Field(default="0 5 * * sun", description="when the policy is aligned")
    misfire_grace_s: int = Field(default=6 * 3600, ge=1, description="a time missed by no more than this is caught up, once")
    poll_s: float = Field(default=1.0, gt=0, le=60, description="seconds between two looks for requested runs")
    publish_index: bool = Field(default=True, description="whether a new index goes live at once, with the policy that is live")

    @field_validator("ctr", "index", "policy")
    @classmethod
    def _check_cron(cls, line: str) -> str:
        if line != OFF:
            from apscheduler.triggers.cron import CronTrigger

            CronTrigger.from_crontab(line, timezone="UTC")
        return line

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


def plan(settings: TimetableSettings, ledger: Ledger, poll: Callable[[], None]) -> AsyncIOScheduler:
    """Return the scheduler, not yet started, with a request for each kind at its times, and the poll."""
    from apscheduler.schedulers.asyncio import AsyncIOScheduler
    from apscheduler.triggers.cron import CronTrigger

    logging.getLogger("apscheduler").setLevel(logging.WARNING)  # else it logs every poll
    # asyncio keeps everything on the main thread: a job's process dies with the thread that started it.
    scheduler = AsyncIOScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})

    async def ask(kind: Kind) -> None:
        log.info("event=run_requested kind=%s run=%d", kind, ledger.request(kind))

    async def look() -> None:
        poll()

    for kind in KINDS:
        if settings.line(kind) != OFF:
            trigger = CronTrigger.from_crontab(settings.line(kind), timezone="UTC")
            scheduler.add_job(ask, trigger, [kind], id=kind, misfire_grace_time=settings.misfire_grace_s)
    scheduler.add_job(look, "interval", seconds=settings.poll_s, id="poll", misfire_grace_time=None)
    return scheduler


async def run_until_signal(settings: TimetableSettings, jobs: Jobs) -> None:
    """Run until SIGTERM or SIGINT; then end the job processes and record them."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    scheduler = plan(settings, jobs.ledger, jobs.poll)
    scheduler.start()
    jobs.fail_lost_runs()
    jobs.poll()
    log.info("event=timetable_started %s", " ".join(f'{kind}="{settings.line(kind)}"' for kind in KINDS))
    try:
        await stopping.wait()
    finally:
        scheduler.shutdown(wait=False)
        jobs.stop()
        log.info("event=timetable_stopped")


def run(settings: Any) -> None:
    """Run the daemon (`python -m trainers`). `settings` has the sections data and timetable."""
    folder: Path = settings.data.dir
    asyncio.run(run_until_signal(settings.timetable, Jobs(Ledger(folder / "ledger.sqlite"), folder)))
