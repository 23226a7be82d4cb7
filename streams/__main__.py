"""`python -m streams`: the worker process. Exit code 0 after a clean stop, 1 when it failed, 2 when its settings are wrong.

65 (EX_DATAERR) when the log holds records that it cannot read: a supervisor should not start it again before a person has acted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from streams.runtime.logs import configure_logs
from streams.worker.tuning import block_pandas, disable_slow_avx512

UNREADABLE = 65
EXAMPLE = "example: QUERYLOOP_KAFKA_BOOTSTRAP=127.0.0.1:9092 python -m streams --config queryloop.toml"


def main(argv: list[str] | None = None) -> int:
    """Read the settings and run the worker until it is stopped; return the exit code."""
    # Imported here because they import numpy, which must come after the tuning at the end of this file.
    from streams.runtime.settings import SettingsError, load_settings
    from streams.runtime.settings_records import record_settings
    from streams.worker.main import UnreadableLog, WorkerError, run_worker
    from streams.worker.settings import StreamsSettings

    parser = argparse.ArgumentParser(prog="python -m streams", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--config", type=Path, help="settings file (default: $QUERYLOOP_CONFIG or ./queryloop.toml)")
    parser.add_argument("--verbose", action="store_true", help="log at debug level")
    arguments = parser.parse_args(argv)
    configure_logs(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        settings = load_settings(StreamsSettings, arguments.config)
        record_settings(f"streams-{settings.worker.name}", settings, settings.data.dir, arguments.config)
        run_worker(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except UnreadableLog as error:
        print(error, file=sys.stderr)
        return UNREADABLE
    except (WorkerError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def exit_now(code: int) -> None:
    """End the process without waiting for threads, which a failed consumer may leave running."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    block_pandas()
    disable_slow_avx512()
    exit_now(main())
