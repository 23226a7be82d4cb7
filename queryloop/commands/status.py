"""`queryloop status`: what runs on this machine, what the worker has counted, the live release, the last training runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from queryloop.commands.asked_folder import Section, expected_folder, explain_stranger
from queryloop.exits import Exit
from queryloop.settings import Settings, read_settings
from queryloop.up.readiness import ask_worker
from serving.releases.registry import ReleaseError, read_rollout
from streams.api.client import HttpError, WrongFolder, get_json
from streams.runtime.data_folder import DataFolder, find_data_folder
from streams.runtime.settings_records import find_differences, read_records
from trainers.jobs.ledger import Ledger

TIMEOUT_S = 3.0
NOT_READY = 503


def run(options: argparse.Namespace) -> int:
    """Print the status of every room. Raises SettingsError."""
    return show_status(read_settings(options), as_json=options.json)


def show_status(settings: Settings, *, as_json: bool) -> int:
    """Print the status; the exit code is 3 when the worker, the server or the trainers are down or not ready."""
    found = read_status(settings)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
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
    return {
        "up": running or None,
        "streams": _read_worker(worker, settings.worker.key, own if "worker" in running else expected_folder(settings, "worker")),
        "serving": fetch(
            f"{serving}/readyz", settings.serving.key, own if "serving" in running else expected_folder(settings, "serving")
        ),
        "trainers": _read_trainers(settings.data.dir),
        "rollout": _read_rollout(settings.data.dir),
        "settings": _read_settings_records(settings),
    }


def _read_settings_records(settings: Settings) -> list[dict[str, Any]]:
    """Return what each running process runs on, with the settings that differ from those that are read now."""
    return [
        {
            "process": record.process,
            "pid": record.pid,
            "file": record.file,
            "read_at": record.read_at.isoformat(timespec="seconds"),
            "hash": record.hash,
            "differences": {key: {"process": before, "now": now} for key, (before, now) in found.items()},
        }
        for record in read_records(settings.data.dir)
        if psutil.pid_exists(record.pid)
        for found in [find_differences(record, settings)]
    ]


def _read_worker(url: str, key: SecretStr | None, folder: DataFolder | None) -> dict[str, Any]:
    """Return a worker's status, with `ready` and, in `state`, what it still does."""
    status = fetch(f"{url}/status", key, folder)
    if not status["up"]:
        return status
    readiness = ask_worker(url, key)
    return {**status, "ready": readiness.ready, "state": readiness.text}


def read_running(folder: Path) -> dict[str, Any]:
    """Return the addresses that `queryloop up` wrote, empty when it does not run."""
    path = folder / "run" / "up.json"
    if not path.exists():
        return {}
    written: dict[str, Any] = json.loads(path.read_text())
    return written if psutil.pid_exists(int(written["pid"])) else {}


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
        return {"up": False, "url": url, **status, **loading, "error": error.reason}


def _read_trainers(folder: Path) -> dict[str, Any]:
    path = folder / "ledger.sqlite"
    if not path.exists():
        return {"up": False, "error": f"{path} does not exist: nothing was trained here yet", "runs": []}
    ledger = Ledger(path)
    runs = [
        {"id": r.id, "kind": r.kind, "state": r.state, "started_at": r.started_at, "ended_at": r.ended_at, "outcome": r.outcome}
        for r in ledger.runs(limit=10)
    ]
    lives = ledger.daemon_lives()
    return {"up": lives, **({} if lives else {"error": "the timetable's daemon writes no heartbeat"}), "runs": runs}


def _read_rollout(folder: Path) -> dict[str, Any]:
    try:
        rollout = read_rollout(folder)
    except ReleaseError as error:
        return {"error": str(error)}
    return {"champion": rollout.champion, "challenger": rollout.challenger, "previous": rollout.previous}


def _print_status(found: dict[str, Any]) -> None:
    console = Console()
    for room in ("streams", "serving", "trainers"):
        state = found[room]
        console.print(f"{room:9} {_describe_room(state)}", soft_wrap=True)
    rollout, loading = found["rollout"], found["serving"].get("loading")
    champion = str(rollout.get("error") or rollout.get("champion") or "none yet")
    console.print(f"release   {escape(champion)}{f', loading {escape(loading)}' if loading else ''}", soft_wrap=True)
    for record in found["settings"]:
        if differing := ", ".join(record["differences"]):
            line = f"{record['process']} runs on settings read at {record['read_at']}, other than now: {differing}"
            console.print(f"settings  [yellow]{escape(line)}[/]", soft_wrap=True, highlight=False)
    if shards := found["streams"].get("shards"):
        console.print(_shard_table(shards))
    if runs := found["trainers"]["runs"]:
        console.print(_run_table(runs))


def _describe_room(state: dict[str, Any]) -> str:
    """Return a room's state with rich's markup; a room that answers 503 runs and is not ready."""
    if state.get("up"):
        return (
            f"[green]{escape(state.get('state', 'up'))}[/]"
            if state.get("ready", True)
            else f"[yellow]{escape(state['state'])}[/]"
        )
    if state.get("loading"):
        return f"[yellow]loading {escape(str(state['loading']))}[/]"
    status = state.get("status")
    word = "[red]down[/]" if status is None else "[yellow]not ready[/]" if status == NOT_READY else f"[red]HTTP {status}[/]"
    return f"{word}: {escape(str(state.get('error', '')))}"


def _shard_table(shards: list[dict[str, Any]]) -> Table:
    table = Table("shard", "events", "counted", "duplicates", "quarantined", "pending", "days in the lake")
    for shard in shards:
        numbers = (shard[name] for name in ("partition", "events", "counted", "duplicates"))
        bad = sum(shard["quarantined"].values())
        table.add_row(*(str(n) for n in numbers), str(bad), str(shard["pending"]), str(len(shard["days_exported"])))
    return table


def _run_table(runs: list[dict[str, Any]]) -> Table:
    table = Table("run", "job", "state", "seconds", "detail")
    for run in runs:
        seconds = f"{run['ended_at'] - run['started_at']:.0f}" if run["ended_at"] and run["started_at"] else ""
        table.add_row(str(run["id"]), run["kind"], run["state"], seconds, escape(str(run["outcome"].get("detail", ""))))
    return table
