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
from queryloop.torture.expected_counts import differences, expected_counts, reported_counts
from queryloop.torture.faults import FaultRecord, inject
from queryloop.torture.flow import Flow
from queryloop.torture.generated_log import MIN_EVENTS, TortureLog
from queryloop.torture.harness import Harness, Producer
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
"""At least so many, and two for each worker: Faust gives a worker at most its share rounded up, so of 4 a third one got none."""
PRODUCERS = {"kafka": 2, "embedded": 1}
"""One on the embedded broker: two would send a lost log again in another order, on which some outcomes depend."""
RETENTION_DAYS = 16
"""Less than the 20 days of a full log, so that events expire; more than the 14 of a window."""
SESSION_S = {"kafka": 10.0, "embedded": 2.0}
"""Real Kafka takes a killed worker back within this time without a rebalance; the embedded broker waits until it is over."""
END_S = 60.0


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    events: int = 500_000
    kills: int = 30
    workers: int = 2
    seed: int = 0
    broker: Literal["embedded", "kafka"] = "kafka"
    brokers: int = 1
    keep: Path | None = None

    def check(self) -> None:
        """Check the options. Raises CommandError."""
        if self.events < MIN_EVENTS or self.workers < 1:
            raise CommandError(f"a torture needs --events {MIN_EVENTS} or more and --workers 1 or more", Exit.USAGE)
        if self.brokers > 1 and self.broker != "kafka":
            raise CommandError("--brokers 3 is a cluster of real Kafka: leave --broker embedded out", Exit.USAGE)
        if self.keep is not None and self.keep.exists() and any(self.keep.iterdir()):
            raise CommandError(f"--keep {self.keep} is not empty: a torture begins with nothing", Exit.USAGE)


def run_torture(options: Options, folder: Path) -> Result:
    partitions = max(PARTITIONS, 2 * options.workers)
    producers = PRODUCERS[options.broker]
    generated = TortureLog(options.seed, options.events, producers)
    expected = expected_counts(generated, partitions)
    sizes = Sizes(options.kills, options.workers, producers, partitions, options.brokers)
    copies = {"replication": 3, "min_insync": 2} if options.brokers > 1 else {}
    shape = {"broker": options.broker, "session_timeout_s": SESSION_S[options.broker], "partitions": partitions}
    kafka = KafkaSettings.model_validate({**shape, **copies})
    with ExitStack() as stack:
        broker = stack.enter_context(open_broker(options.broker, options.brokers, folder, kafka))
        kafka = kafka.model_copy(update={"bootstrap": broker.bootstrap})
        harness = _make_harness(options, generated, folder, kafka)
        stack.callback(harness.stop)
        began = time.monotonic()
        harness.start()
        record = _drive(harness, draw_schedule(options.seed, sizes), broker)
        seconds = time.monotonic() - began
        _wait_for_end(harness, kafka)
        wrong = _find_lost_lines(harness) + differences(expected, reported_counts(harness.shards()))
        verified, verdict = run_verify(harness.workers[0].settings, log_was_lost=record.logs_lost > 0)
        wrong += harness.stop()
    restarts = [one for worker in harness.workers for one in worker.restarts]
    asked = {name: value for name, value in asdict(options).items() if name != "keep"} | {"producers": producers}
    kept = folder if options.keep is not None or wrong or not verified else None
    return Result(asked, seconds, record, restarts, harness.unexpected_exits, wrong, verdict, verified, kept)


def _drive(harness: Harness, schedule: list[Step], broker: TortureBroker) -> FaultRecord:
    """Do every step at its share of the log, then let the rest of the log be counted."""
    record = FaultRecord()
    with _progress(harness, record) as show:

        def reached(share: float) -> bool:
            show()
            return harness.flow.applied_share >= share

        for step in schedule:
            harness.flow.allow(step.at)
            harness.wait(lambda at=step.at: reached(at), f"{step.at:.0%} of the log counted")  # type: ignore[misc]
            inject(step, harness, broker, record)
        harness.flow.allow(1.0)
        harness.wait(lambda: reached(1.0) and harness.flow.done, "the whole log counted")
    return record


def _find_lost_lines(harness: Harness) -> list[str]:
    """Return a line when fewer lines were read from the log than were acknowledged to the producers."""
    acknowledged, read = harness.flow.acknowledged, sum(shard["events"] for shard in harness.shards().values())
    return [f"{acknowledged - read:,} acknowledged lines were never read from the log"] if read < acknowledged else []


def _wait_for_end(harness: Harness, kafka: KafkaSettings) -> None:
    """Wait until every shard is held by a worker and has counted to the end of its partition."""
    ends = end_offsets(kafka, kafka.topic)

    def at_end() -> bool:
        return {number: shard["next_offset"] for number, shard in harness.shards().items()} == ends

    harness.wait(
        lambda: at_end() and all(map(harness.is_counting, harness.workers)), "every shard at the end of its partition", END_S
    )


def _make_harness(options: Options, generated: TortureLog, folder: Path, kafka: KafkaSettings) -> Harness:
    logs = folder / "logs"
    static = options.broker == "kafka"  # the embedded broker takes 3 s longer to admit a static member
    lines_a_day = options.events * 10 // generated.stages // kafka.partitions
    worker = WorkerSettings(static=static, retention_days=RETENTION_DAYS, compact_rows=max(1, lines_a_day // 2))
    workers = [
        Worker(_worker_settings(f"worker-{number}", port, worker, folder, kafka), logs / f"worker-{number}.log")
        for number, port in enumerate(non_ephemeral_ports(options.workers))
    ]
    files = StageFiles(folder / "stages")
    producers = [
        Producer(number, generated, _producer_settings(number, folder, kafka), files, logs / f"producer-{number}.log")
        for number in range(generated.producers)
    ]
    flow = Flow(generated, files, topic_id(kafka, kafka.topic))
    return Harness(flow, workers, producers, kafka.partitions)


def _producer_settings(number: int, folder: Path, kafka: KafkaSettings) -> ProducerSettings:
    return ProducerSettings(kafka=kafka, emitter=EmitterSettings(outbox_dir=folder / f"outbox-{number}"))


def _worker_settings(name: str, port: int, worker: WorkerSettings, folder: Path, kafka: KafkaSettings) -> StreamsSettings:
    own = worker.model_copy(update={"name": name, "port": port})
    return StreamsSettings(data=DataSettings(dir=folder / "data"), kafka=kafka, worker=own)


@contextmanager
def _progress(harness: Harness, record: FaultRecord) -> Iterator[Callable[[], None]]:
    """Yield a function that updates a progress bar, on standard error where that is a terminal."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:
        bar = bars.add_task("starting", total=harness.flow.stages)

        def show() -> None:
            bars.update(bar, completed=harness.flow.applied_stages, description=f"counting, {record.kills} kills")

        yield show
