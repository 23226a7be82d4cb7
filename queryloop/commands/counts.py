"""`queryloop windows`, `successors`, `lag` and `delays`: what the workers have counted so far, from any worker's HTTP.

The worker is the one that `queryloop up` runs, else the one of the settings, else any that says it holds a shard.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from queryloop.commands.status import read_running
from queryloop.exits import CommandError, Exit

if TYPE_CHECKING:
    from queryloop.settings import Settings

TIMEOUT_S = 30.0
PARAMETERS = ("query", "item", "position", "as_of", "limit")
COLUMNS = {
    "windows": ("query", "item", "position", "impressions", "clicks", "raw_ctr", "smoothed_ctr", "coec"),
    "successors": ("next_query", "count", "share"),
    "lag": ("shard", "next_offset", "end_offset", "records", "events", "seconds", "event_time_seconds"),
    "delays": ("upto_s", "clicks"),
}


def show_read(settings: Settings, what: str, options: argparse.Namespace) -> int:
    """Ask a worker and print its answer. Raises CommandError: usage for what it refuses, unavailable where a shard is missing."""
    given = {name: getattr(options, name, None) for name in PARAMETERS}
    parameters = {name: str(value) for name, value in given.items() if value is not None}
    if options.partial:
        parameters["partial"] = "true"
    answer = ask_worker(settings, f"/v1/{what}?{urlencode(parameters)}")
    if options.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _print(what, answer)
    return Exit.DONE


def ask_worker(settings: Settings, path: str) -> dict[str, Any]:
    """Return what the first worker that can be reached answers. Raises CommandError."""
    silent = []
    for url in find_workers(settings):
        try:
            return _fetch(url + path, settings)
        except OSError as error:
            silent.append(f"{url}: {getattr(error, 'reason', error)}")
    raise CommandError(f"no worker answers: {'; '.join(silent)}; start `queryloop up`, or set worker.port", Exit.UNAVAILABLE)


def find_workers(settings: Settings) -> Iterator[str]:
    """The addresses at which a worker may be, each once."""
    running = read_running(settings.data.dir).get("worker")
    known = [running, f"http://{settings.worker.host}:{settings.worker.port}"]
    for path in sorted((settings.data.dir / "run" / "shards").glob("*.json")):
        known.append(json.loads(path.read_text())["url"])
    yield from dict.fromkeys(url for url in known if url)


def _fetch(url: str, settings: Settings) -> dict[str, Any]:
    key = settings.worker.key
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
            read: dict[str, Any] = json.load(answer)
            return read
    except urllib.error.HTTPError as error:
        code = Exit.USAGE if error.code == 400 else Exit.UNAVAILABLE
        raise CommandError(_problem(error), code) from error


def _problem(error: urllib.error.HTTPError) -> str:
    body = error.read(2000)
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        text = f"HTTP {error.code}"
    if error.code == 401:
        text = "the worker asks for a key: set QUERYLOOP_WORKER_KEY to its worker.key"
    return text.replace("partial=true", "--partial")


def _print(what: str, answer: dict[str, Any]) -> None:
    console = Console()
    table = Table(*COLUMNS[what])
    for row in _rows(what, answer):
        table.add_row(*(_cell(row[name]) for name in COLUMNS[what]))
    console.print(table)
    console.print(_summary(what, answer), soft_wrap=True, highlight=False)
    if answer["missing"]:
        console.print(f"[red]without the partitions {', '.join(map(str, answer['missing']))}[/]: no worker answers for them")


def _rows(what: str, answer: dict[str, Any]) -> list[dict[str, Any]]:
    if what == "lag":
        return [{"shard": shard, **told} for shard, told in answer["shards"].items()]
    rows: list[dict[str, Any]] = answer["buckets" if what == "delays" else "rows"]
    return rows


def _summary(what: str, answer: dict[str, Any]) -> str:
    match what:
        case "windows":
            return f"{answer['total']} cells in the 14 days before {answer['as_of']}"
        case "successors":
            return f"followed {answer['followed']} times by {answer['total']} queries in the 14 days before {answer['as_of']}"
        case "lag":
            return f"behind by {_cell(answer['records'])} records, {_cell(answer['seconds'])} seconds"
        case _:
            parts = ", ".join(f"{name[:3]} {_cell(answer[name])} s" for name in ("p50_s", "p90_s", "p99_s"))
            return f"{answer['clicks']} clicks: {parts}"


def _cell(value: Any) -> str:
    """A value for a terminal: text without what a terminal would obey."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value))
    return escape(text)
