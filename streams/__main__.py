"""`python -m streams`: the worker process. Exit code 0 after a clean stop, 1 when it failed, 2 when its settings are wrong."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from streams.logs import configure_logs
from streams.settings import SettingsError, load_settings
from streams.worker import StreamsSettings, WorkerError, run_worker

EXAMPLE = "example: QUERYLOOP_KAFKA_BOOTSTRAP=127.0.0.1:9092 python -m streams --config queryloop.toml"


class WithoutPandas(MetaPathFinder):
    """Makes `import pandas` fail at once.

    pyarrow imports pandas, where it is installed, for the first list that becomes an array: 0.4 s or more between a worker's
    restart and its first batch, for nothing that a worker uses.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Raises ModuleNotFoundError for pandas; other modules are left to the other finders."""
        if name == "pandas":
            raise ModuleNotFoundError("a worker does without pandas", name=name)
        return None


def main(argv: list[str] | None = None) -> int:
    """Read the settings and run the worker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="python -m streams", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--config", type=Path, help="settings file (default: $QUERYLOOP_CONFIG or ./queryloop.toml)")
    parser.add_argument("--verbose", action="store_true", help="log at debug level")
    arguments = parser.parse_args(argv)
    configure_logs(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        run_worker(load_settings(StreamsSettings, arguments.config))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def exit_now(code: int) -> None:
    """End the process without waiting for the threads of a consumer that failed."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.meta_path.insert(0, WithoutPandas())
    exit_now(main())
