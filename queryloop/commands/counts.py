"""What `queryloop windows`, `successors`, `lag` and `delays` share: a worker is asked over HTTP, its answer printed as a table.

The worker is the one that `queryloop up` runs, else the one of the settings, else any that holds a shard.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from queryloop.commands.asked_folder import expected_folder, explain_stranger
from queryloop.commands.status import read_running
from queryloop.exits import CommandError, Exit
from queryloop.output import print_answer
from queryloop.settings import Settings, read_settings
from queryloop.tables import print_line, print_table
from streams.api.client import HttpError, WrongFolder, get_json
from streams.runtime.data_folder import DataFolder, find_data_folder
from streams.store.shard_registry import ShardRegistry

PARAMETERS = ("query", "item", "position", "as_of", "limit")

Answer = dict[str, Any]
"""A worker's answer to a read, or one row of it."""


@dataclass(frozen=True)
class Table:
    """How one command shows an answer: each field of a row with its heading, the name of the rows, the line below.

    `texts` are the fields that may fold on a terminal. `convert` makes the command's answer of the worker's."""

    columns: Mapping[str, str]
    rows: str
    summary: Callable[[Answer], str]
    texts: Collection[str] = ()
    convert: Callable[[Answer], Answer] = lambda answer: answer


def show_counts(options: argparse.Namespace, read: str, table: Table) -> int:
    """Ask a worker for /v1/`read` and print the answer.

    Raises SettingsError and CommandError: usage where the worker refuses the parameters, unavailable where a shard is missing.
    """
    given = {name: getattr(options, name, None) for name in PARAMETERS}
    parameters = {name: str(value) for name, value in given.items() if value is not None}
    if options.partial:
        parameters["partial"] = "true"
    answer = table.convert(ask_worker(read_settings(options), f"/v1/{read}", parameters))
    if options.json:
        print_answer(answer)
    else:
        _print(answer, table)
    return Exit.DONE


def ask_worker(settings: Settings, path: str, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Return the answer of the first worker that can be reached. Raises CommandError."""
    unreachable = []
    for url, folder in find_workers(settings):
        try:
            return get_json(url + path, settings.worker.key, parameters, folder=folder)
        except WrongFolder as error:
            unreachable.append(f"{url}: {explain_stranger(error.reason, 'worker')}")
        except HttpError as error:
            if error.status is not None:
                raise _refusal(error) from error
            unreachable.append(f"{url}: {error.reason}")
    raise CommandError(f"no worker answers: {'; '.join(unreachable)}; start `queryloop up`, or set worker.port", Exit.UNAVAILABLE)


def _refusal(error: HttpError) -> CommandError:
    text = str(error) if error.status == HTTPStatus.UNAUTHORIZED else error.reason
    code = Exit.USAGE if error.status == HTTPStatus.BAD_REQUEST else Exit.UNAVAILABLE
    return CommandError(text.replace("partial=true", "--partial"), code)


def find_workers(settings: Settings) -> Iterator[tuple[str, DataFolder | None]]:
    """Yield the base URLs of workers that may be running, each once, and the folder that each must work on (None: any)."""
    registry = ShardRegistry(settings.data.dir)
    holders = filter(None, map(registry.find, range(settings.kafka.partitions)))
    running = read_running(settings.data.dir).get("worker")
    own = find_data_folder(settings.data.dir)
    named = [(settings.worker.local_url, expected_folder(settings, "worker"))]
    known = [(running, own), *named, *((holder.url, own) for holder in holders)]
    # The last one of an address stays: what the environment names is asked whatever is recorded in the folder.
    yield from {url: folder for url, folder in [*known, *named] if url}.items()


def _print(answer: Answer, table: Table) -> None:
    rows = [[row.get(name) for name in table.columns] for row in answer[table.rows]]
    print_table(list(table.columns.values()), rows, {table.columns[name] for name in table.texts})
    print_line(table.summary(answer))
    if answer["missing"]:
        print_line((f"without the partitions {', '.join(map(str, answer['missing']))}", "red"), ": no worker answers for them")
