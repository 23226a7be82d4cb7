"""The ledger: training runs that were requested, run and ended, the heartbeat of the timetable's daemon, and how far it came.

One SQLite file in the data folder, in WAL mode: the daemon, a job's own process and the command line use it at the same time.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from streams.runtime.processes import find_start, is_running, name_machine

Kind = Literal["ctr", "index", "policy", "prune"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BUSY_TIMEOUT_S = 10.0
HEARTBEAT_FRESH_S = 10.0

SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    requested_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    pid INTEGER,
    outcome TEXT NOT NULL DEFAULT '{}',
    log TEXT
);
CREATE INDEX IF NOT EXISTS runs_by_state ON runs (state, kind);
CREATE TABLE IF NOT EXISTS daemon (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    pid INTEGER NOT NULL,
    at REAL NOT NULL,
    machine TEXT NOT NULL,
    started REAL
);
CREATE TABLE IF NOT EXISTS options (
    run INTEGER PRIMARY KEY,
    chosen TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS planned (
    kind TEXT PRIMARY KEY,
    line TEXT NOT NULL,
    since REAL NOT NULL
);
"""
COLUMNS = "id, kind, state, requested_at, started_at, ended_at, pid, outcome, log"
REQUEST = "INSERT INTO runs (kind, state, requested_at) VALUES (?, 'requested', ?)"
BEGIN = "INSERT INTO runs (kind, state, requested_at, started_at, pid) VALUES (?1, 'running', ?2, ?2, ?3)"
CHOOSE = "INSERT INTO options (run, chosen) VALUES (?, ?)"
READ_OPTIONS = "SELECT chosen FROM options WHERE run = ?"
WAITING = """SELECT id FROM runs LEFT JOIN options ON run = id
    WHERE kind = ? AND state = 'requested' AND coalesce(chosen, '{}') = ? ORDER BY id LIMIT 1"""
START = "UPDATE runs SET state = 'running', started_at = ?, pid = ? WHERE id = ? AND state = 'requested'"
FINISH = "UPDATE runs SET state = ?, ended_at = ?, outcome = ? WHERE id = ? AND state IN ('requested', 'running')"
SET_LOG = "UPDATE runs SET log = ? WHERE id = ?"
RUNNING = "SELECT id FROM runs WHERE kind = ? AND state = 'running'"
READ_RUN = f"SELECT {COLUMNS} FROM runs WHERE id = ?"
READ_RUNS = f"SELECT {COLUMNS} FROM runs WHERE (?1 IS NULL OR kind = ?1) ORDER BY id DESC LIMIT ?2"
READ_RUNNING = f"SELECT {COLUMNS} FROM runs WHERE state = 'running' ORDER BY started_at, id"
READ_REQUESTED = f"SELECT {COLUMNS} FROM runs WHERE state = 'requested' ORDER BY id"
ADD_UP = "SELECT coalesce(sum(json_extract(outcome, '$.' || ?2)), 0) FROM runs WHERE kind = ?1"
COUNT_RUNS = "SELECT kind, state, count(*), min(started_at), max(ended_at) FROM runs GROUP BY kind, state"
BEAT = "INSERT OR REPLACE INTO daemon (one, pid, at, machine, started) VALUES (1, ?, ?, ?, ?)"
READ_HEARTBEAT = "SELECT pid, at, machine, started FROM daemon"
PLAN = "INSERT INTO planned (kind, line, since) VALUES (?1, ?2, ?3) ON CONFLICT (kind) DO UPDATE SET line = ?2, since = ?3"
READ_PLANNED = "SELECT since FROM planned WHERE kind = ? AND line = ?"
STOP_HEARTBEAT = "DELETE FROM daemon WHERE pid = ?"


class LedgerError(RuntimeError):
    """A run that does not exist or is not in the right state; the text names run and ledger."""


class State(StrEnum):
    """The state of a run. `skipped`: nothing to do, or not enough data; `failed`: somebody must look."""

    REQUESTED = "requested"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Run:
    """One row. Times are seconds since the epoch; `log` is the file with the run's output, None where there is none."""

    id: int
    kind: Kind
    state: State
    requested_at: float
    started_at: float | None
    ended_at: float | None
    pid: int | None
    outcome: dict[str, Any]
    log: str | None

    @property
    def ended(self) -> bool:
        return self.state not in (State.REQUESTED, State.RUNNING)


@dataclass(frozen=True)
class RunTotals:
    """The runs of one kind in one state: how many, the first start and the last end in seconds since the epoch."""

    runs: int = 0
    first_start: float | None = None
    last_end: float | None = None


@dataclass(frozen=True)
class Heartbeat:
    """The daemon's last heartbeat: its process, the time, the machine (`streams.runtime.processes.name_machine`), and when
    the process started; None where that could not be read."""

    pid: int
    at: float
    machine: str
    started: float | None

    def fresh(self, now: float) -> bool:
        return now - self.at < HEARTBEAT_FRESH_S

    def process_runs(self) -> bool:
        """Return whether the process still runs; of one on another machine, or in another container, only its beats tell."""
        if self.started is None or self.machine != name_machine():
            return True
        return is_running(self.pid, self.started)


class Ledger:
    """Every method is one short transaction on a connection of its own, so a ledger may be shared between threads."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as database:
            database.executescript(SCHEMA)

    def request(self, kind: Kind, options: Mapping[str, Any] = MappingProxyType({})) -> int:
        """Request a run and return its id; that of a run of the kind with the same options that still waits, if there is one."""
        chosen = json.dumps(dict(options), sort_keys=True)
        with self._change() as database:
            if waiting := database.execute(WAITING, (_known(kind), chosen)).fetchone():
                return int(waiting[0])
            run = _inserted(database.execute(REQUEST, (kind, self._clock())))
            if options:
                database.execute(CHOOSE, (run, chosen))
            return run

    def options(self, run: int) -> dict[str, Any]:
        """Return the options that a run was requested with, empty where there are none."""
        with self._connect() as database:
            row = database.execute(READ_OPTIONS, (run,)).fetchone()
        found: dict[str, Any] = json.loads(row[0]) if row else {}
        return found

    def start(self, run: int, pid: int) -> Run:
        """Record the start of a requested run in process `pid`. Raises LedgerError when it is not waiting."""
        with self._change() as database:
            if database.execute(START, (self._clock(), pid, run)).rowcount != 1:
                raise LedgerError(f"{self.path}: run {run} is not waiting to be started")
        return self.run(run)

    def begin(self, kind: Kind, pid: int) -> Run:
        """Record a run that starts now in process `pid`, without a request that a daemon could take up."""
        with self._change() as database:
            run = _inserted(database.execute(BEGIN, (_known(kind), self._clock(), pid)))
        return self.run(run)

    def finish(self, run: int, state: State, outcome: Mapping[str, Any]) -> None:
        """Record how a run ended; a run that has ended already keeps its first record."""
        with self._change() as database:
            database.execute(FINISH, (state, self._clock(), json.dumps(outcome), run))

    def fail_lost(self, kind: Kind) -> list[int]:
        """Record the runs that are still marked as running as failed. Only for the holder of the kind's lock: then none runs."""
        with self._change() as database:
            lost = [int(row[0]) for row in database.execute(RUNNING, (kind,))]
            for run in lost:
                reason = json.dumps({"detail": "its process ended without a record (killed, or the machine went down)"})
                database.execute(FINISH, (State.FAILED, self._clock(), reason, run))
        return lost

    def set_log(self, run: int, log: Path) -> None:
        with self._change() as database:
            database.execute(SET_LOG, (str(log), run))

    def run(self, run: int) -> Run:
        """Return a run. Raises LedgerError for an unknown id."""
        with self._connect() as database:
            row = database.execute(READ_RUN, (run,)).fetchone()
        if row is None:
            raise LedgerError(f"{self.path}: there is no run {run}")
        return _read(row)

    def runs(self, kind: Kind | None = None, limit: int = 50) -> list[Run]:
        """Return the newest runs first."""
        with self._connect() as database:
            return [_read(row) for row in database.execute(READ_RUNS, (kind, limit))]

    def count_runs(self) -> dict[tuple[Kind, State], RunTotals]:
        """Return the totals of all runs by kind and state."""
        with self._connect() as database:
            return {(kind, State(state)): RunTotals(*rest) for kind, state, *rest in database.execute(COUNT_RUNS)}

    def add_up(self, kind: Kind, figure: str) -> float:
        """Return the sum of a figure over the outcomes of all runs of a kind."""
        with self._connect() as database:
            return float(database.execute(ADD_UP, (kind, figure)).fetchone()[0])

    def running(self) -> list[Run]:
        """Return the runs that are marked as running, the first one first; the process of one may have been killed."""
        with self._connect() as database:
            return [_read(row) for row in database.execute(READ_RUNNING)]

    def requested(self) -> list[Run]:
        """Return the runs that wait, oldest first."""
        with self._connect() as database:
            return [_read(row) for row in database.execute(READ_REQUESTED)]

    def beat(self, pid: int) -> None:
        """Write the daemon's heartbeat."""
        with self._change() as database:
            database.execute(BEAT, (pid, self._clock(), name_machine(), find_start(pid)))

    def stop_beating(self, pid: int) -> None:
        """Remove the heartbeat of a daemon that stops; that of another one is kept."""
        with self._change() as database:
            database.execute(STOP_HEARTBEAT, (pid,))

    def heartbeat(self) -> Heartbeat | None:
        with self._connect() as database:
            row = database.execute(READ_HEARTBEAT).fetchone()
        return Heartbeat(*row) if row else None

    def plan(self, kind: Kind, line: str) -> None:
        """Record that every due time of this timetable line up to now is dealt with."""
        with self._change() as database:
            database.execute(PLAN, (kind, line, self._clock()))

    def planned_since(self, kind: Kind, line: str) -> float | None:
        """Return when the line's due times were last dealt with; None for a line that is new."""
        with self._connect() as database:
            row = database.execute(READ_PLANNED, (kind, line)).fetchone()
        return float(row[0]) if row else None

    def daemon_lives(self) -> bool:
        """Return whether a daemon wrote a heartbeat within the last ten seconds, and was not killed since."""
        beat = self.heartbeat()
        return beat is not None and beat.fresh(self._clock()) and beat.process_runs()

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                yield database
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"{self.path}: {error}; if it is damaged, move it away: only the record of past runs is in it"
            ) from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Open a write transaction with the write lock from its beginning, so that what it read is still true when it writes."""
        with self._connect() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise LedgerError(f"there is no job {kind!r}; jobs are {', '.join(KINDS)}")
    return kind


def _inserted(cursor: sqlite3.Cursor) -> int:
    if cursor.lastrowid is None:
        raise LedgerError("SQLite gave no id for a new run")
    return cursor.lastrowid


def _read(row: tuple[Any, ...]) -> Run:
    number, kind, state, requested, started, ended, pid, outcome, log = row
    return Run(number, kind, State(state), requested, started, ended, pid, json.loads(outcome), log)
