"""A process that runs one worker after another, each as `python -m streams` does: importing once saves a second a test.

python -m queryloop.pytest_plugin.worker_runner PIPE: each line of the pipe is the environment of the next worker, in JSON.
SIGTERM ends the worker that runs; then its data and its topics are removed. A worker that fails ends the process.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from importlib import import_module
from pathlib import Path

from queryloop.pytest_plugin.runner_pool import END
from streams.__main__ import exit_now
from streams.runtime.logs import configure_logs
from streams.runtime.settings import load_settings
from streams.worker.main import WorkerError, run_worker
from streams.worker.settings import StreamsSettings

log = logging.getLogger(__name__)


def main(pipe: Path) -> int:
    """Run a worker for each line of the pipe; return the exit code."""
    configure_logs(logging.INFO)
    _import_ahead()
    with pipe.open(encoding="utf-8") as lines:
        for line in lines:
            environ = json.loads(line)
            if environ == END:
                return 0
            settings = load_settings(StreamsSettings, environ=environ)
            try:
                run_worker(settings)
            except WorkerError as error:
                print(error, file=sys.stderr)
                return 1
            _remove(settings)
    return 0


def _import_ahead() -> None:
    """Import what a worker imports when it starts, while no test waits for it yet."""
    for name in ("streams.worker.app", "streams.api.routes"):
        import_module(name)


def _remove(settings: StreamsSettings) -> None:
    """Remove the worker's folder, and its topics where the broker outlives this run."""
    shutil.rmtree(settings.data.dir)
    if settings.kafka.broker == "embedded" or settings.kafka.bootstrap is None:
        return
    from kafka.errors import KafkaError

    from streams.brokers.clients import KafkaAdminClient
    from streams.brokers.connection import client_options

    topics = [settings.kafka.topic, settings.kafka.quarantine_topic]
    try:
        with KafkaAdminClient(**client_options(settings.kafka)) as admin:
            admin.delete_topics(topics)
    except (KafkaError, OSError) as error:
        log.warning("event=topics_left topics=%s error=%r", ",".join(topics), error)


if __name__ == "__main__":
    exit_now(main(Path(sys.argv[1])))
