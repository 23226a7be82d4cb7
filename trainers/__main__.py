"""`python -m trainers`: the timetable's daemon; `… job KIND`: one job in this process; `… alive`: whether the daemon runs.

Exit codes: 0 done or alive, 1 failed or not alive, 2 wrong usage or settings, 4 another run of the kind is in progress, 5
skipped.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from streams.runtime.logs import configure_logs
from streams.runtime.settings import DataSettings, SettingsError, load_settings
from trainers.jobs.http import PortBusy
from trainers.jobs.ledger import KINDS, Ledger, LedgerError
from trainers.jobs.processes import ENVIRON
from trainers.jobs.timetable import TimetableSettings

EXAMPLE = "examples:\n  python -m trainers\n  python -m trainers job ctr\n  python -m trainers alive"


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; see the module's docstring for the exit codes."""
    arguments = _parse(argv)
    configure_logs()
    try:
        if arguments.command == "job":
            return _run_job(arguments)
        if arguments.command == "alive":
            return _say_alive(arguments.config)
        return _run_timetable(arguments.config)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 2
    except (LedgerError, PortBusy) as error:
        print(error, file=sys.stderr)
        return 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m trainers", description=__doc__, epilog=EXAMPLE, formatter_class=style)
    parser.add_argument("--config", type=Path, help="settings file (default: $QUERYLOOP_CONFIG or ./queryloop.toml)")
    commands = parser.add_subparsers(dest="command")
    job = commands.add_parser("job", help="run one job here", epilog="example: python -m trainers job index")
    job.add_argument("kind", choices=KINDS)
    job.add_argument("--run", type=int, help="the ledger's number of the requested run that this is")
    commands.add_parser("alive", help="exit code 0 when the daemon runs", epilog="example: python -m trainers alive")
    return parser.parse_args(argv)


def _run_job(arguments: argparse.Namespace) -> int:
    for name, value in ENVIRON.items():
        os.environ.setdefault(name, value)  # before torch is imported
    from trainers.jobs.runner import run_recorded
    from trainers.jobs.settings import TrainerSettings

    signal.signal(signal.SIGTERM, _stop)
    return run_recorded(arguments.kind, load_settings(TrainerSettings, arguments.config), arguments.run)


def _stop(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM end a job by an exception, so that it is recorded in the ledger."""
    sys.exit(128 + number)


def _run_timetable(config: Path | None) -> int:
    from streams.runtime.settings_records import record_settings
    from trainers.jobs.settings import TrainerSettings
    from trainers.jobs.timetable import run

    settings = load_settings(TrainerSettings, config)
    record_settings("trainers", settings, settings.data.dir, config)
    run(settings)
    return 0


def _say_alive(config: Path | None) -> int:
    from pydantic import BaseModel

    class Root(BaseModel, frozen=True, extra="forbid"):
        data: DataSettings = DataSettings()
        timetable: TimetableSettings = TimetableSettings()

    ledger = Ledger(load_settings(Root, config).data.dir / "ledger.sqlite")
    beat = ledger.heartbeat()
    if ledger.daemon_lives():
        return 0
    last = (
        "has never written a heartbeat"
        if beat is None
        else f"wrote its last heartbeat at {beat.at:.0f} (seconds since the epoch)"
    )
    print(f"the trainers' daemon {last}: {ledger.path}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
