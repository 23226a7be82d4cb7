"""One producer as a process: sends its part of the log with the real emitter, stage by stage as the gate opens.

A stage counts as emitted when the emitter's outbox has it on disk, and as sent when the broker has acknowledged all of it.
Restarted after a kill, the producer goes on after the last emitted stage; the outbox sends what was emitted before. The lines of
the stage during which it was killed are sent twice, with the same ids.

python -m queryloop.torture.producer --seed 1 --events 20000 --producers 2 --producer 0 --folder DIR
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from pydantic import BaseModel, Field

from queryloop.torture.generated_log import TortureLog
from queryloop.torture.stage_files import Progress, StageFiles
from streams.brokers.topics import KafkaSettings
from streams.emitter.emitter import Emitter, EmitterSettings, QueueFull
from streams.runtime.logs import configure_logs
from streams.runtime.settings import load_settings

log = logging.getLogger(__name__)

POLL_S = 0.02
FLUSH_S = 120.0

Wait = Callable[[float], bool]
"""Waits for so many seconds; True when the process is to stop."""


class ProducerSettings(BaseModel, frozen=True, extra="forbid"):
    """The sections that a producer reads."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    emitter: EmitterSettings = Field(default_factory=EmitterSettings)


class NotAcknowledged(RuntimeError):
    """A stage was not stored or acknowledged in time."""


def send_log(generated: TortureLog, producer: int, files: StageFiles, emitter: Emitter, wait: Wait) -> None:
    """Send the stages that are not emitted yet, until the log ends or `wait` returns True. Raises NotAcknowledged."""
    done = files.progress(producer)
    if done.stored > done.stages:
        _acknowledge(done.stored, producer, files, emitter)
    for stage in range(done.stored, generated.stages):
        lines = generated.stage_lines(producer, stage)
        while files.gate() <= stage:
            if wait(POLL_S):
                return
        for line in lines:
            _emit(emitter, line.line, line.session_id)
        if not emitter.store(FLUSH_S):
            raise NotAcknowledged(f"stage {stage} is not in the outbox after {FLUSH_S:g} s: {emitter.counters()}")
        files.report(producer, msgspec.structs.replace(files.progress(producer), stored=stage + 1))
        _acknowledge(stage + 1, producer, files, emitter)


def _acknowledge(stages: int, producer: int, files: StageFiles, emitter: Emitter) -> None:
    if not emitter.flush(FLUSH_S):
        raise NotAcknowledged(f"stage {stages - 1} is not acknowledged after {FLUSH_S:g} s: {emitter.counters()}")
    positions = {**files.progress(producer).positions, **emitter.positions()}
    files.report(producer, Progress(stages, stages, positions))


def _emit(emitter: Emitter, line: bytes, session_id: str) -> None:
    try:
        emitter.emit_line(line, session_id)
    except QueueFull:
        emitter.flush(FLUSH_S)
        emitter.emit_line(line, session_id)


def main(argv: Sequence[str] | None = None) -> int:
    """Send one producer's part; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m queryloop.torture.producer", description=__doc__)
    for name in ("seed", "events", "producers", "producer"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(argv)
    configure_logs()
    settings = load_settings(ProducerSettings)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    generated = TortureLog(options.seed, options.events, options.producers)
    try:
        with Emitter(settings.kafka, settings.emitter, topic=settings.kafka.topic) as emitter:
            send_log(generated, options.producer, StageFiles(options.folder), emitter, stop.wait)
    except NotAcknowledged as error:
        log.error("event=not_acknowledged error=%r", str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
