"""What `queryloop windows`, `successors`, `lag` and `delays` share: a worker is asked over HTTP, its answer printed as a table.

The worker is the one that `queryloop up` runs, else the one of the settings, else any that holds a shard.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import rich.table
from rich.console import Console
from rich.markup import escape

from queryloop.commands.status import read_running
from queryloop.exits import CommandError, Exit
from queryloop.settings import Settings, read_settings

TIMEOUT_S = 30.0
PARAMETERS = ("query", "item", "position", "as_of", "limit")

Answer = dict[str, Any]
"""A worker's answer to a read, or one row of it."""


@dataclass(frozen=True)
class Table:
    """How one command shows an answer: the columns of its table, the rows for them, and the line below."""

    columns: tuple[str, ...]
    rows: Callable[[Answer], Sequence[Answer]]
    summary: Callable[[Answer], str]


def show_counts(options: argparse.Namespace, read: str, table: Table) -> int:
    """Ask a worker for /v1/`read` and print the answer.

    Raises SettingsError and CommandError: usage where the worker refuses the parameters, unavailable where a shard is missing.
    """
    given = {name: getattr(options, name, None) for name in PARAMETERS}
    parameters = {name: str(value) for name, value in given.items() if value is not None}
    if options.partial:
        parameters["partial"] = "true"
    answer = ask_worker(read_settings(options), f"/v1/{read}?{urlencode(parameters)}")
    if options.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
    else:
        _print(answer, table)
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


def _print(answer: Answer, table: Table) -> None:
    console = Console()
    shown = rich.table.Table(*table.columns)
    for row in table.rows(answer):
        shown.add_row(*(cell(row[name]) for name in table.columns))
    console.print(shown)
    console.print(table.summary(answer), soft_wrap=True, highlight=False)
    if answer["missing"]:
        console.print(f"[red]without the partitions {', '.join(map(str, answer['missing']))}[/]: no worker answers for them")


def cell(value: Any) -> str:
    """Return a value as text for a terminal, characters that would control the terminal escaped."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in str(value))
    return escape(text)
