"""`queryloop status`: what runs on this machine, what the worker has counted, the live release, the last training runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from queryloop.commands.asked_folder import Section, expected_folder, explain_stranger
from queryloop.commands.run import run_as_json
from queryloop.exits import Exit
from queryloop.output import print_answer, rfc3339
from queryloop.settings import Settings, read_settings
from queryloop.tables import print_line, print_table
from queryloop.up.readiness import FALLS_BACK, ask_worker
from serving.releases.registry import ReleaseError, read_rollout
from streams.api.client import NOBODY_LISTENS, HttpError, WrongFolder, get_json
from streams.runtime.data_folder import DataFolder, find_data_folder
from streams.runtime.processes import find_start, is_running
from streams.runtime.settings_records import find_differences, read_record, read_records
from trainers.jobs.ledger import Ledger

TIMEOUT_S = 3.0
NOT_READY = 503
NOT_RUNNING = "not running (start `queryloop up`)"
STARTING = "not running yet (`queryloop up` starts it)"
RESTARTING = "not running (`queryloop up` starts it again)"


def run(options: argparse.Namespace) -> int:
    """Print the status of every room. Raises SettingsError."""
    return show_status(read_settings(options), as_json=options.json)


def show_status(settings: Settings, *, as_json: bool) -> int:
    """Print the status; the exit code is 3 when the worker, the server or the trainers are down or not ready."""
    found = read_status(settings)
    if as_json:
        print_answer(found)
    else:
        _print_status(found)
    alive = all(found[room].get("up") and found[room].get("ready", True) for room in ("streams", "serving", "trainers"))
    return Exit.DONE if alive else Exit.UNAVAILABLE


def read_status(settings: Settings) -> dict[str, Any]:
    """Return the state of each room as JSON values; for a room that is down, the reason."""
    running = read_running(settings.data.dir)
    worker = running.get("worker") or settings.worker.local_url
    serving = running.get("serving") or f"http://{settings.serving.host}:{settings.serving.port}"
    own = find_data_folder(settings.data.dir)
    found: dict[str, Any] = {
        "up": running or None,
        "streams": _read_worker(worker, settings.worker.key, own if "worker" in running else expected_folder(settings, "worker")),
        "serving": fetch(
            f"{serving}/readyz", settings.serving.key, own if "serving" in running else expected_folder(settings, "serving")
        ),
        "trainers": _read_trainers(settings.data.dir),
        "rollout": _read_rollout(settings.data.dir),
        "settings": _read_settings_records(settings),
    }
    for room in ("streams", "serving", "trainers"):
        if found[room].get("error") == NOT_RUNNING:
            found[room]["error"] = RESTARTING if running else STARTING if _is_starting(settings.data.dir) else NOT_RUNNING
    return found


def _is_starting(folder: Path) -> bool:
    """Whether a `queryloop up` runs on this data folder. It writes its record when it begins, its addresses when all answer."""
    record = read_record(folder, "up")
    started = None if record is None else find_start(record.pid)
    return record is not None and started is not None and started <= record.read_at.timestamp()


def _read_settings_records(settings: Settings) -> list[dict[str, Any]]:
    """Return what each running process runs on, with the settings that differ from those that are read now."""
    return [
        {
            "process": record.process,
            "pid": record.pid,
            "file": record.file,
            "read_ts": record.read_at.timestamp(),
            "hash": record.hash,
            "differences": {key: {"process": before, "now": now} for key, (before, now) in found.items()},
        }
        for record in read_records(settings.data.dir)
        if find_start(record.pid) is not None
        for found in [find_differences(record, settings)]
    ]


def _read_worker(url: str, key: SecretStr | None, folder: DataFolder | None) -> dict[str, Any]:
    """Return a worker's status, with `ready` and, in `state`, what it still does."""
    status = fetch(f"{url}/status", key, folder)
    if not status["up"]:
        return status
    readiness = ask_worker(url, key)
    for name in ("shards", "waiting"):
        status[name] = [{"shard": one["partition"], **_without(one, "partition")} for one in status.get(name, [])]
    return {**status, "ready": readiness.ready, "state": readiness.text}


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def read_running(folder: Path) -> dict[str, Any]:
    """Return the addresses that `queryloop up` wrote, empty when it does not run."""
    path = folder / "run" / "up.json"
    if not path.exists():
        return {}
    written: dict[str, Any] = json.loads(path.read_text())
    return written if is_running(int(written["pid"]), written.get("started")) else {}


def fetch(url: str, key: SecretStr | None, folder: DataFolder | None = None) -> dict[str, Any]:
    """Return the JSON object of a room's page with `up` added, or {"up": False, "error"} and the HTTP `status`, if any.

    A process that says that it works on another data folder than `folder` is another stack's, and this one is down.
    """
    try:
        return {"up": True, "url": url, **get_json(url, key, timeout_s=TIMEOUT_S, folder=folder)}
    except WrongFolder as error:
        section: Section = "serving" if url.endswith("/readyz") else "worker"
        return {"up": False, "url": url, "error": explain_stranger(f"{url}: {error.reason}", section)}
    except HttpError as error:
        status = {"status": error.status} if error.status else {}
        loading = {"loading": error.answer["loading"]} if error.answer.get("loading") else {}
        reason = NOT_RUNNING if error.reason == NOBODY_LISTENS else error.reason
        return {"up": False, "url": url, **status, **loading, "error": reason}


def _read_trainers(folder: Path) -> dict[str, Any]:
    path = folder / "ledger.sqlite"
    if not path.exists():
        return {"up": False, "error": NOT_RUNNING, "runs": []}
    ledger = Ledger(path)
    runs = [run_as_json(run) for run in ledger.runs(limit=10)]
    lives = ledger.daemon_lives()
    return {"up": lives, **({} if lives else {"error": NOT_RUNNING}), "runs": runs}


def _read_rollout(folder: Path) -> dict[str, Any]:
    try:
        rollout = read_rollout(folder)
    except ReleaseError as error:
        return {"error": str(error)}
    return {"champion": rollout.champion, "challenger": rollout.challenger, "previous": rollout.previous}


def _print_status(found: dict[str, Any]) -> None:
    for room in ("streams", "serving", "trainers"):
        print_line(f"{room:9} ", *_describe_room(found[room]))
    for shard in found["streams"].get("waiting", []):
        print_line(f"shard {shard['shard']:<4}", ("waits: its file is open in another process", "yellow"), f": {shard['error']}")
    rollout, loading = found["rollout"], found["serving"].get("loading")
    champion = str(rollout.get("error") or rollout.get("champion") or "none yet")
    print_line(f"release   {champion}{f', loading {loading}' if loading else ''}")
    for fault in found["serving"].get("faults", ()):
        print_line("release   ", (f"{champion}: {fault}", "yellow"))
    for record in found["settings"]:
        if differing := ", ".join(record["differences"]):
            read_at = rfc3339(int(record["read_ts"]))
            said = f"{record['process']} runs on settings read at {read_at}, other than now: {differing}"
            print_line("settings  ", (said, "yellow"))
    if shards := found["streams"].get("shards"):
        _print_shards(shards)
    if runs := found["trainers"]["runs"]:
        print_table(("run", "job", "state", "seconds", "detail"), list(map(_run_row, runs)), texts=("detail",))


def _describe_room(state: dict[str, Any]) -> list[tuple[str, str]]:
    """Return a room's state as texts with their styles; a room that answers 503 runs and is not ready."""
    if state.get("up") and state.get("form"):
        return [(FALLS_BACK, "yellow")]
    if state.get("up"):
        return [(str(state.get("state", "up")), "green" if state.get("ready", True) else "yellow")]
    if state.get("loading"):
        return [(f"loading {state['loading']}", "yellow")]
    error, status = str(state.get("error", "")), state.get("status")
    if error in (NOT_RUNNING, STARTING, RESTARTING):
        return [(error, "yellow" if error == STARTING else "red")]
    word = ("down", "red") if status is None else ("not ready", "yellow") if status == NOT_READY else (f"HTTP {status}", "red")
    return [word, (f": {error}", "")]


def _print_shards(shards: list[dict[str, Any]]) -> None:
    columns = ("shard", "events", "counted", "duplicates", "quarantined", "pending", "left out", "days in lake")
    rows = [
        [
            *(shard[name] for name in ("shard", "events", "counted", "duplicates")),
            sum(shard["quarantined"].values()),
            shard["pending"],
            sum(shard["left_out"].values()),
            len(shard["days_exported"]),
        ]
        for shard in shards
    ]
    print_table(columns, rows)


def _run_row(run: dict[str, Any]) -> list[Any]:
    started, ended = run["started_ts"], run["ended_ts"]
    seconds = f"{ended - started:.0f}" if ended and started else None
    return [run["run"], run["kind"], run["state"], seconds, run["outcome"].get("detail", "")]
