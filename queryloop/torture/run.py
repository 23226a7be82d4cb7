"""One run of the torture: processes are started, the schedule's faults done while the log flows, every count compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from queryloop.exits import CommandError, Exit
from queryloop.torture.brokers import TortureBroker, open_broker
from queryloop.torture.expected_counts import account_of, differences, expected_account
from queryloop.torture.faults import Diary, do
from queryloop.torture.flow import Flow
from queryloop.torture.generated_log import MIN_EVENTS, TortureLog
from queryloop.torture.harness import Producer, Stand
from queryloop.torture.producer import ProducerSettings
from queryloop.torture.report import Result
from queryloop.torture.schedule import Sizes, Step, draw_schedule
from queryloop.torture.stage_files import StageFiles
from queryloop.torture.verify_process import run_verify
from queryloop.torture.workers import Worker
from streams.brokers.topics import KafkaSettings, end_offsets, topic_id
from streams.emitter.emitter import EmitterSettings
from streams.runtime.processes import non_ephemeral_ports
from streams.runtime.settings import DataSettings
from streams.worker.settings import StreamsSettings, WorkerSettings

PARTITIONS = 4
"""At least, and two for each worker: Faust gives no worker more than its share rounded up, so of 4 a third one would get none."""
PRODUCERS = {"kafka": 2, "embedded": 1}
"""On the embedded broker one: two would send a lost log again in an order of its own, and what it counts to depends on that."""
RETENTION_DAYS = 16
"""Less than the 20 days of a full log, so that expiry runs; more than a window's 14."""
SESSION_S = {"kafka": 10.0, "embedded": 2.0}
"""Real Kafka takes a killed worker back without a rebalance, within this time; the embedded broker waits for it to be over."""
SETTLE_S = 60.0


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    events: int = 500_000
    kills: int = 30
    workers: int = 2
    seed: int = 0
    broker: Literal["embedded", "kafka"] = "kafka"
    brokers: int = 1
    keep: Path | None = None

    def check(self) -> None:
        """Raises CommandError for what cannot be run."""
        if self.events < MIN_EVENTS or self.workers < 1:
            raise CommandError(f"a torture needs --events {MIN_EVENTS} or more and --workers 1 or more", Exit.USAGE)
        if self.brokers > 1 and self.broker != "kafka":
            raise CommandError("--brokers 3 is a cluster of real Kafka: leave --broker embedded out", Exit.USAGE)
        if self.keep is not None and self.keep.exists() and any(self.keep.iterdir()):
            raise CommandError(f"--keep {self.keep} is not empty: a torture begins with nothing", Exit.USAGE)


def run_torture(options: Options, folder: Path) -> Result:
    partitions = max(PARTITIONS, 2 * options.workers)
    producers = PRODUCERS[options.broker]
    made = TortureLog(options.seed, options.events, producers)
    expected = expected_account(made, partitions)
    sizes = Sizes(options.kills, options.workers, producers, partitions, options.brokers)
    copies = {"replication": 3, "min_insync": 2} if options.brokers > 1 else {}
    shape = {"broker": options.broker, "session_timeout_s": SESSION_S[options.broker], "partitions": partitions}
    kafka = KafkaSettings.model_validate({**shape, **copies})
    with ExitStack() as stack:
        broker = stack.enter_context(open_broker(options.broker, options.brokers, folder, kafka))
        kafka = kafka.model_copy(update={"bootstrap": broker.bootstrap})
        stand = _make_stand(options, made, folder, kafka)
        stack.callback(stand.stop)
        began = time.monotonic()
        stand.start()
        diary = _drive(stand, draw_schedule(options.seed, sizes), broker)
        seconds = time.monotonic() - began
        _settle(stand, broker.bootstrap, kafka.topic)
        wrong = _lost(stand) + differences(expected, account_of(stand.shards()))
        verified, said = run_verify(stand.workers[0].settings, log_was_lost=diary.logs_lost > 0)
        wrong += stand.stop()
    restarts = [one for worker in stand.workers for one in worker.restarts]
    asked = {name: value for name, value in asdict(options).items() if name != "keep"} | {"producers": producers}
    kept = folder if options.keep is not None or wrong or not verified else None
    return Result(asked, seconds, diary, restarts, stand.surprises, wrong, said, verified, kept)


def _drive(stand: Stand, schedule: list[Step], broker: TortureBroker) -> Diary:
    """Do every step when its time has come, then let the rest of the log be counted."""
    diary = Diary()
    with _progress(stand, diary) as show:

        def reached(share: float) -> bool:
            show()
            return stand.flow.applied_share >= share

        for step in schedule:
            stand.flow.allow(step.at)
            stand.wait(lambda at=step.at: reached(at), f"{step.at:.0%} of the log counted")  # type: ignore[misc]
            do(step, stand, broker, diary)
        stand.flow.allow(1.0)
        stand.wait(lambda: reached(1.0) and stand.flow.done, "the whole log counted")
    return diary


def _lost(stand: Stand) -> list[str]:
    """Say when fewer lines were read from the log than producers were told that it has."""
    acknowledged, read = stand.flow.acknowledged, sum(shard["events"] for shard in stand.shards().values())
    return [f"{acknowledged - read:,} acknowledged lines never came out of the log"] if read < acknowledged else []


def _settle(stand: Stand, bootstrap: str, topic: str) -> None:
    """Wait until every shard is held by a worker and stands at the end of its partition."""
    ends = end_offsets(bootstrap, topic)

    def at_end() -> bool:
        return {number: shard["next_offset"] for number, shard in stand.shards().items()} == ends

    stand.wait(lambda: at_end() and all(map(stand.settled, stand.workers)), "every shard at the end of its partition", SETTLE_S)


def _make_stand(options: Options, made: TortureLog, folder: Path, kafka: KafkaSettings) -> Stand:
    logs = folder / "logs"
    static = options.broker == "kafka"  # the embedded broker takes 3 s longer to admit a static member
    lines_a_day = options.events * 10 // made.stages // kafka.partitions
    worker = WorkerSettings(static=static, retention_days=RETENTION_DAYS, compact_rows=max(1, lines_a_day // 2))
    workers = [
        Worker(_worker_settings(f"worker-{number}", port, worker, folder, kafka), logs / f"worker-{number}.log")
        for number, port in enumerate(non_ephemeral_ports(options.workers))
    ]
    files = StageFiles(folder / "stages")
    producers = [
        Producer(number, made, _producer_settings(number, folder, kafka), files, logs / f"producer-{number}.log")
        for number in range(made.producers)
    ]
    flow = Flow(made, files, topic_id(kafka.bootstrap or "", kafka.topic))
    return Stand(flow, workers, producers, kafka.partitions)


def _producer_settings(number: int, folder: Path, kafka: KafkaSettings) -> ProducerSettings:
    return ProducerSettings(kafka=kafka, emitter=EmitterSettings(outbox_dir=folder / f"outbox-{number}"))


def _worker_settings(name: str, port: int, worker: WorkerSettings, folder: Path, kafka: KafkaSettings) -> StreamsSettings:
    own = worker.model_copy(update={"name": name, "port": port})
    return StreamsSettings(data=DataSettings(dir=folder / "data"), kafka=kafka, worker=own)


@contextmanager
def _progress(stand: Stand, diary: Diary) -> Iterator[Callable[[], None]]:
    """Yield what brings the bar up to date; it is on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task("starting", total=stand.flow.stages)

        def show() -> None:
            bars.update(bar, completed=stand.flow.applied_stages, description=f"counting, {diary.kills} kills")

        yield show
