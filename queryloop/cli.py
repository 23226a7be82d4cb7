"""The command `queryloop`: reads its arguments, then imports only what the chosen command needs, so that --help is instant."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from queryloop.arguments import (
    number_between,
    read_day,
    read_factor,
    read_moment,
    read_port,
    read_reason,
    read_seed,
    read_text,
    read_whole,
    read_window_day,
)
from queryloop.exits import MEANINGS, CommandError, Exit
from queryloop.output import print_error

BROKERS = ("embedded", "kafka")
KINDS = ("ctr", "index", "policy", "prune")
WITH_PACKAGE = ("up", "demo", "torture", "erase", "prune", "quarantine")
"""Commands with a package of their own, in its file `command`; the others are files of `queryloop.commands`."""
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""What the machine refuses, a full disk above all: no defect of ours, so its own text is said instead of a trace."""
RUN_HELP = "ctr: predictor and judge; index: nearest queries; policy: cold start or DPO; prune: remove what nobody needs"
RELEASE_STEPS = ("list", "promote", "rollback", "reject")
BROKER_HELP = "embedded: in memory, nothing to install; kafka: real Apache Kafka, durable (default: kafka.broker)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (`queryloop.exits`). Raises SystemExit after --help and for wrong usage."""
    words = list(sys.argv[1:] if argv is None else argv)
    _prepare_process()
    try:
        options = make_parser().parse_args(words)
    except UsageError as error:
        error.print(as_json="--json" in words)
        raise
    as_json = getattr(options, "json", False)
    try:
        return int(import_module(options.module).run(options))
    except KeyboardInterrupt:
        text, code = "interrupted", Exit.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except Exception as error:
        known = error.code if isinstance(error, CommandError) else _expected(error)
        if isinstance(error, OSError) and error.errno in MACHINE_ERRORS:
            known = Exit.FAILED
        if known is None:
            raise
        text, code = str(error), known
    print_error(text, code, as_json=as_json)
    return code


def _prepare_process() -> None:
    # Read by OpenMP when torch is first imported: spinning idle threads starve the others on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # A script's `queryloop up &` inherits SIGINT ignored, and Python then leaves it so: `kill -INT` would do nothing.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _expected(error: Exception) -> Exit | None:
    """Return the exit code of an error whose text is meant for people, None for a defect of the program."""
    meanings = {
        "SettingsError": Exit.USAGE,
        "LogFileError": Exit.USAGE,
        "KafkaUnavailable": Exit.UNAVAILABLE,
        "BrokerError": Exit.UNAVAILABLE,
        "TopicError": Exit.UNAVAILABLE,
        "TopicReadError": Exit.UNAVAILABLE,
        "TortureError": Exit.FAILED,
        "UpError": Exit.UNAVAILABLE,
        "ProcessError": Exit.FAILED,
        "ReplayError": Exit.FAILED,
        "ReleaseError": Exit.FAILED,
        "ArtifactError": Exit.FAILED,
        "LedgerError": Exit.FAILED,
        "StoreError": Exit.FAILED,
        "ErasureError": Exit.FAILED,
    }
    # Compared by name: importing the classes would cost what --help must not.
    return next((meanings[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in meanings), None)


class UsageError(SystemExit):
    """Words that are no command; ends the process with the code for wrong usage where nobody catches it."""

    def __init__(self, text: str, usage: str) -> None:
        super().__init__(int(Exit.USAGE))
        self._text, self._usage = text, usage

    def print(self, *, as_json: bool) -> None:
        """Print what is wrong, for people below a line of usage."""
        if not as_json:
            sys.stderr.write(self._usage)
        print_error(self._text, Exit.USAGE, as_json=as_json)


class Parser(argparse.ArgumentParser):
    """Raises UsageError, so that wrong usage is printed as --json asks; argparse itself prints text and exits."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        command = self.prog.removeprefix("queryloop").strip()
        raise UsageError(f"{command}: {message}" if command else message, self.format_usage())


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the options of each name the `module` whose `run` does it."""
    parser = Parser(
        prog="queryloop",
        description="A streaming feedback loop for generative query recommendation.",
        epilog=f"example: queryloop demo --seed 3\n\n{MEANINGS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="settings file (default: $QUERYLOOP_CONFIG, ./queryloop.toml)"
    )
    parser.add_argument("--version", action=_Version, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    first = (_add_up, _add_demo, _add_replay, _add_broker, _add_run, _add_releases, _add_prune)
    for add in (*first, _add_status, _add_config, _add_reads, _add_verify, _add_torture, _add_quarantine, _add_erase):
        add(commands)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: importlib.metadata costs what --help must not."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the version and leave."""
        from importlib.metadata import version

        print(f"queryloop {version('queryloop')}")
        parser.exit()


def _add(commands: Any, name: str, about: str, example: str) -> argparse.ArgumentParser:
    """Add a command; its module has a function `run` that takes the options and returns the exit code."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # After the command's name too: many write it there. Without a default it does not undo one that stands before.
    parser.add_argument("--config", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.set_defaults(module=f"queryloop.{name}.command" if name in WITH_PACKAGE else f"queryloop.commands.{name}")
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _add_mapping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mapping",
        type=Path,
        metavar="FILE.sql",
        help="a SELECT that makes events of a foreign log, or one that ships: ubi.sql and others (docs/mappings.md)",
    )


def _add_up(commands: Any) -> None:
    parser = _add(commands, "up", "run broker, worker, trainers and server here until Ctrl-C", "queryloop up --broker kafka")
    parser.add_argument("--broker", choices=BROKERS, help=BROKER_HELP)


def _add_demo(commands: Any) -> None:
    parser = _add(commands, "demo", "run the whole loop twice against a simulated product", "queryloop demo --seed 3")
    parser.add_argument("--seed", type=read_seed, default=0, help="seed of the simulated world (default: 0)")
    parser.add_argument("--broker", choices=BROKERS, help=BROKER_HELP)
    parser.add_argument("--out", type=Path, default=Path("demo-report"), metavar="DIR", help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="very small sizes: shows that it runs, learns next to nothing")
    _add_json(parser)


def _add_replay(commands: Any) -> None:
    example = "queryloop replay ubi.ndjson.gz --mapping ubi.sql --isolated --as-of 2021-04-01 --out counts/"
    parser = _add(commands, "replay", "replay a log of events", example)
    log_help = "NDJSON plain, gzip or zstd; Parquet; a folder or glob of them; - for standard input; others with --mapping"
    parser.add_argument("log", type=Path, metavar="LOG", help=log_help)
    _add_mapping(parser)
    parser.add_argument("--check", action="store_true", help="send nothing: print what would be sent, exit 1 if any is refused")
    parser.add_argument("--isolated", action="store_true", help="on a broker and state of its own; writes tables to --out")
    parser.add_argument(
        "--as-of", type=read_day, action="append", metavar="DAY", help="UTC day YYYY-MM-DD of the tables; may be given again"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where an isolated replay writes its tables")
    parser.add_argument("--force", action="store_true", help="write into --out though it is not empty")
    late = "send events that the running system will refuse as too old, which go to its quarantine"
    parser.add_argument("--allow-late", action="store_true", help=late)
    parser.add_argument("--broker", choices=BROKERS, help=BROKER_HELP)
    parser.add_argument("--speed", type=read_factor, metavar="X", help="keep time distances, X times as fast")
    _add_json(parser)


def _add_broker(commands: Any) -> None:
    parser = _add(commands, "broker", "run a broker alone until Ctrl-C", "queryloop broker --broker kafka --port 9092")
    parser.add_argument("--broker", choices=BROKERS, help=BROKER_HELP)
    parser.add_argument("--port", type=read_port, help="port on loopback, 0 for any (default: kafka.port, 9092)")


def _add_run(commands: Any) -> None:
    parser = _add(commands, "run", "run a training job now", "queryloop run policy")
    parser.add_argument("kind", choices=KINDS, help=RUN_HELP)
    parser.add_argument(
        "--with-daemon-settings",
        action="store_true",
        help="run on the settings of the trainers' daemon where they differ",
    )
    anew = "policy: start anew from policy.base and policy.annotations, while the champion answers on"
    parser.add_argument("--from-base", action="store_true", help=anew)
    forced = "policy: promote the new policy even if its gate refuses it; recorded in release and audit.jsonl"
    parser.add_argument("--force", action="store_true", help=forced)
    _add_json(parser)


def _add_releases(commands: Any) -> None:
    parser = _add(commands, "releases", "list releases, or change which one answers", "queryloop releases rollback")
    parser.add_argument("step", nargs="?", choices=RELEASE_STEPS, default="list", help="default: list")
    parser.add_argument("id", nargs="?", help="the release to promote, or to reject: no job makes it live any more")
    parser.add_argument("--force", action="store_true", help="promote what was rejected or refused; recorded in audit.jsonl")
    parser.add_argument("--reason", metavar="TEXT", help="why a release is rejected; recorded in audit.jsonl")
    parser.add_argument("--history", action="store_true", help="list every promotion, rollback and rejection: when, and by whom")
    _add_json(parser)


def _add_prune(commands: Any) -> None:
    about = "list which artifacts and releases nobody needs any more, or remove them; their records stay"
    parser = _add(commands, "prune", about, "queryloop prune --yes")
    parser.add_argument("--yes", action="store_true", help="do it; else what would go is said and nothing is removed")
    _add_json(parser)


def _add_status(commands: Any) -> None:
    parser = _add(commands, "status", "show what runs, what is counted and which release is live", "queryloop status --json")
    _add_json(parser)


def _add_verify(commands: Any) -> None:
    about = "count everything anew from the log and compare with the shards"
    parser = _add(commands, "verify", about, "queryloop verify --json")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--from-lake", action="store_true", help="from the lake's day files instead of Kafka")
    source.add_argument("--log", type=Path, metavar="FILE", help="from a log that was replayed, instead of Kafka")
    _add_mapping(parser)
    parser.add_argument("--limit", type=read_whole, default=20, metavar="N", help="differing keys to print (default: 20)")
    _add_json(parser)


def _add_torture(commands: Any) -> None:
    about = "kill real processes while a difficult log flows, then compare every count"
    parser = _add(commands, "torture", about, "queryloop torture --events 500000 --kills 30 --workers 2")
    parser.add_argument("--events", type=number_between(1, 10**9), default=500_000, help="lines of the log (default: 500000)")
    parser.add_argument("--kills", type=number_between(0, 10_000), default=30, help="how often a worker is killed (default: 30)")
    parser.add_argument("--workers", type=number_between(1, 64), default=2, help="workers of one group (default: 2)")
    parser.add_argument("--broker", choices=BROKERS, default="kafka", help="the broker, which is killed too (default: kafka)")
    parser.add_argument("--brokers", type=int, choices=(1, 3), default=1, help="3: a cluster whose leaders are killed in turn")
    parser.add_argument("--seed", type=read_seed, default=0, help="seed of the log and of the schedule (default: 0)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs and data there (default: kept only when wrong)")
    _add_json(parser)


def _add_quarantine(commands: Any) -> None:
    about = "list, show and repair the events that could not be counted"
    example = """queryloop quarantine list --reason invalid
         queryloop quarantine show 2:17 --raw > fix.jsonl    # edit it, then
         queryloop quarantine replay --file fix.jsonl
         queryloop quarantine drop --reason too_old --yes"""
    parser = _add(commands, "quarantine", about, example)
    steps = parser.add_subparsers(title="steps", dest="step", required=True, metavar="STEP")
    rows = steps.add_parser("list", help="the number of rows by reason, and the newest ones")
    rows.add_argument("--reason", type=read_reason, help="only rows of this reason")
    rows.add_argument(
        "--limit", type=number_between(1, 500), default=20, metavar="N", help="rows to print, at most 500 (default: 20)"
    )
    row = steps.add_parser("show", help="one row with its original bytes, escaped")
    row.add_argument("id", metavar="PARTITION:ID", help="as `list` names it")
    row.add_argument("--raw", action="store_true", help="only the original bytes")
    again = steps.add_parser("replay", help="send rows, or fixed lines, again and print the outcome of each")
    again.add_argument("ids", nargs="*", metavar="PARTITION:ID", help="rows to send again unchanged")
    again.add_argument("--reason", type=read_reason, help="every row of this reason, unchanged")
    again.add_argument("--file", type=Path, metavar="FILE", help="fixed events, one a line, under their own event_id")
    gone = steps.add_parser("drop", help="remove the original bytes of all rows of a reason for good; recorded in audit.jsonl")
    gone.add_argument("--reason", type=read_reason, required=True, help="the reason of the rows")
    gone.add_argument(
        "--before", type=read_moment, metavar="TIME", help="only events from before this day (UTC) or RFC 3339 time"
    )
    gone.add_argument("--yes", action="store_true", help="do it; else the number of rows is said and nothing is removed")
    for step in (rows, row, again, gone):
        _add_json(step)


def _add_erase(commands: Any) -> None:
    about = "remove a session or a user from counts, lake, outboxes and quarantine, and keep their events out from then on"
    parser = _add(commands, "erase", about, "queryloop erase --user 4711 --dry-run")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--session", metavar="ID", help="a session_id: for ever")
    whom.add_argument("--user", metavar="ID", help="a user_id: the events up to now")
    parser.add_argument("--dry-run", action="store_true", help="change nothing: print how many rows there are")
    parser.add_argument(
        "--outbox", type=Path, action="append", default=[], metavar="DIR", help="an outbox elsewhere; may be given again"
    )
    _add_json(parser)


def _add_config(commands: Any) -> None:
    parser = _add(commands, "config", "print the effective settings, secrets masked", "queryloop config --json")
    _add_json(parser)


def _add_reads(commands: Any) -> None:
    windows = _add(
        commands, "windows", "show a query's windows: impressions, clicks, rates", 'queryloop windows --query "red shoes"'
    )
    windows.add_argument("--query", type=read_text, help="a query, in any form that compares equal")
    windows.add_argument("--item", type=read_text, help="a recommended query; --query, --item or both")
    windows.add_argument("--position", type=number_between(0, 2**31 - 1), help="only this position, from 0")
    about = "show what users searched after a query"
    successors = _add(commands, "successors", about, 'queryloop successors --query "red shoes" --json')
    successors.add_argument("--query", type=read_text, required=True, help="a query, in any form that compares equal")
    for parser in (windows, successors):
        help_ = "UTC day YYYY-MM-DD: the 14 days before it (default: so that the latest event's day shows)"
        parser.add_argument("--as-of", type=read_window_day, metavar="DAY", help=help_)
        parser.add_argument("--limit", type=number_between(1, 10_000), help="rows, at most (default: 100)")
    lag = _add(commands, "lag", "show how far counting is behind the log", "queryloop lag")
    delays = _add(commands, "delays", "show how long after its impression a click is made", "queryloop delays --json")
    for parser in (windows, successors, lag, delays):
        parser.add_argument("--partial", action="store_true", help="answer without the partitions that no worker answers for")
        _add_json(parser)
