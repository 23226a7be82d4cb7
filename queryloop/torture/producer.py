"""One simulated product as a process: sends its part of the log with the real emitter, stage by stage as the gate opens.

It tells how far it is only when the broker has acknowledged a whole stage. Killed and started again it goes on there, so the
lines of the stage it died in may arrive twice, under the ids they were made with.

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

from pydantic import BaseModel, Field

from queryloop.torture.log import TortureLog
from queryloop.torture.stage_files import Progress, StageFiles
from streams.emitter import Emitter, EmitterSettings, QueueFull
from streams.logs import configure_logs
from streams.settings import load_settings
from streams.topics import KafkaSettings

log = logging.getLogger(__name__)

POLL_S = 0.02
FLUSH_S = 120.0

Wait = Callable[[float], bool]
"""Waits for that many seconds; True when the process was told to stop."""


class ProducerSettings(BaseModel, frozen=True, extra="forbid"):
    """The sections that a producer reads."""

    kafka: KafkaSettings = Field(default_factory=KafkaSettings)
    emitter: EmitterSettings = Field(default_factory=EmitterSettings)


def send_log(made: TortureLog, producer: int, files: StageFiles, emitter: Emitter, wait: Wait) -> int:
    """Send the stages that are not delivered yet; return the exit code: 1 when the broker took too long, as a log line says."""
    done = files.progress(producer)
    for stage in range(done.stages, made.stages):
        lines = made.stage_lines(producer, stage)
        while files.gate() <= stage:
            if wait(POLL_S):
                return 0
        for line in lines:
            _emit(emitter, line.line, line.session_id)
        if not emitter.flush(FLUSH_S):
            log.error("event=stage_not_delivered stage=%d counters=%r", stage, emitter.counters())
            return 1
        positions = {**done.positions, **emitter.positions()}
        files.report(producer, Progress(stage + 1, done.delivered + emitter.counters().delivered, positions))
    return 0


def _emit(emitter: Emitter, line: bytes, session_id: str) -> None:
    try:
        emitter.emit_line(line, session_id)
    except QueueFull:
        emitter.flush(FLUSH_S)
        emitter.emit_line(line, session_id)


def main(argv: Sequence[str] | None = None) -> int:
    """Send one producer's part."""
    parser = argparse.ArgumentParser(prog="python -m queryloop.torture.producer", description=__doc__)
    for name in ("seed", "events", "producers", "producer"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args(argv)
    configure_logs()
    settings = load_settings(ProducerSettings)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    made = TortureLog(options.seed, options.events, options.producers)
    with Emitter(settings.kafka.bootstrap or "", settings.emitter, topic=settings.kafka.topic) as emitter:
        return send_log(made, options.producer, StageFiles(options.folder), emitter, stop.wait)


if __name__ == "__main__":
    sys.exit(main())
