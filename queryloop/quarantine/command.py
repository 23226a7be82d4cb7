"""`queryloop quarantine`: lists, shows and drops the events that could not be counted, and sends original or fixed lines again.

A row is named PARTITION:ID. Its text may be hostile, so it is shown escaped; only `show --raw` prints the original bytes.
"""

from __future__ import annotations

import argparse
import base64
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from queryloop.commands.shard_reads import ask_shard
from queryloop.exits import CommandError, Exit
from queryloop.output import print_answer, rfc3339
from queryloop.quarantine.drop import drop
from queryloop.quarantine.repair import check_lines, send_again
from queryloop.settings import Settings, read_settings
from streams.api.client import with_query
from streams.api.quarantine_rows import RowsParams, dump_rows
from streams.events.schema import Reason, printable

PAGE = 200
MAX_FILE_BYTES = 256 * 1024 * 1024

Row = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Do the chosen step. Raises SettingsError, CommandError."""
    settings = read_settings(options)
    if options.step == "list":
        return _list(settings, options.reason, options.limit, as_json=options.json)
    if options.step == "show":
        return _show(settings, options.id, raw=options.raw, as_json=options.json)
    if options.step == "drop":
        return drop(settings, options, partial(_fetch_counts, settings))
    return _replay(settings, options)


def fetch_rows(settings: Settings, partition: int, params: RowsParams) -> dict[str, Any] | None:
    """Return a shard's rows in the form of `dump_rows`, each with its name as `row`; None where there is no shard."""
    parameters = params.model_dump(mode="json", exclude_defaults=True)
    answer = ask_shard(settings, partition, with_query("quarantine", parameters), partial(dump_rows, params=params))
    if answer is None:
        return None
    found: dict[str, Any] = msgspec.json.decode(answer)
    return found | {"rows": [{"row": f"{partition}:{row['id']}", **row} for row in found["rows"]]}


def _list(settings: Settings, reason: Reason | None, limit: int, *, as_json: bool) -> int:
    params = RowsParams(reason=reason, limit=max(min(limit, 500), 1))
    found = [fetch_rows(settings, partition, params) for partition in range(settings.kafka.partitions)]
    parts = [part for part in found if part is not None]
    if not parts:
        where = settings.data.dir / "shards"
        raise CommandError(f"there are no shards in {where}: start `queryloop up`, or set data.dir", Exit.UNAVAILABLE)
    counts = sum((Counter(part["counts"]) for part in parts), Counter())
    rows = sorted((row for part in parts for row in part["rows"]), key=lambda row: -(row["ts_us"] or 0))[:limit]
    if as_json:
        shown = [describe_row({name: value for name, value in row.items() if name != "raw"}) for row in rows]
        print_answer({"counts": dict(sorted(counts.items())), "rows": shown})
        return Exit.DONE
    print("\n".join(f"{number:>10,}  {name}" for name, number in sorted(counts.items())) or "quarantine is empty")
    for row in rows:
        print(
            f"{row['row']:>10}  {row['reason']:<22} {_time(row['ts_us'])}  {printable(row['event_id'] or '-')}  {row['detail']}"
        )
    return Exit.DONE


def _fetch_counts(settings: Settings, partition: int) -> dict[str, int] | None:
    found = fetch_rows(settings, partition, RowsParams(limit=1))
    return None if found is None else found["counts"]


def _show(settings: Settings, name: str, *, raw: bool, as_json: bool) -> int:
    row = find_row(settings, name)
    original = base64.b64decode(row["raw"])
    if raw and as_json:
        raise CommandError("--raw prints bytes; --json has them in raw_base64", Exit.USAGE)
    if raw:
        if sys.stdout.isatty():
            raise CommandError("the original bytes may contain terminal commands: redirect --raw to a file", Exit.USAGE)
        sys.stdout.buffer.write(original)
        sys.stdout.buffer.flush()
        return Exit.DONE
    if as_json:
        print_answer(describe_row(row))
        return Exit.DONE
    fields = {key: row[key] for key in ("row", "reason", "detail", "event_id", "offset", "line", "published")}
    fields |= {"ts": _time(row["ts_us"]), "bytes": len(original), "raw": escaped(original)}
    for key, value in fields.items():
        print(f"{key:<10} {escaped(str(value).encode()) if key == 'event_id' else value}")
    return Exit.DONE


def describe_row(row: Row) -> Row:
    """Return a row as `--json` prints it: named by `row` alone, its time as `ts`, its bytes as base64 and, in UTF-8, as text."""
    shown = {name: value for name, value in row.items() if name not in ("id", "ts_us", "raw")}
    shown |= {"ts": None if row["ts_us"] is None else row["ts_us"] / 1e6}
    if "raw" in row:
        shown |= {"raw_base64": row["raw"], "raw": _decode(base64.b64decode(row["raw"]))}
    return shown


def _decode(raw: bytes) -> str | None:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def escaped(raw: bytes) -> str:
    """Return bytes as printable ASCII, others escaped."""
    return raw.decode("utf-8", "backslashreplace").encode("unicode_escape").decode("ascii")


def find_row(settings: Settings, name: str) -> Row:
    """Return one row with all its fields. Raises CommandError where there is no row of this name (any more)."""
    partition, _, number = name.partition(":")
    if not (partition.isdecimal() and number.isdecimal() and int(partition) < settings.kafka.partitions):
        raise CommandError(f"{name!r} names no row: write PARTITION:ID, as `queryloop quarantine list` does", Exit.USAGE)
    rows = _shard_rows(settings, int(partition), RowsParams(id=int(number), limit=1))
    if not rows:
        raise CommandError(f"there is no row {name}: it expired, or the event was repaired", Exit.FAILED)
    return rows[0]


def _shard_rows(settings: Settings, partition: int, params: RowsParams) -> list[Row]:
    found = fetch_rows(settings, partition, params)
    return [] if found is None else found["rows"]


def _rows_of(settings: Settings, reason: Reason) -> Iterator[Row]:
    """Yield every row of a reason with all its fields, page by page."""
    for partition in range(settings.kafka.partitions):
        after = -1
        while rows := _shard_rows(settings, partition, RowsParams(reason=reason, limit=PAGE, after=after, whole=True)):
            yield from rows
            after = rows[-1]["id"]


def _replay(settings: Settings, options: argparse.Namespace) -> int:
    given = [bool(options.ids), options.reason is not None, options.file is not None]
    if sum(given) != 1:
        raise CommandError("say what to send: row ids, --reason REASON, or --file FIXED.jsonl", Exit.USAGE)
    events = check_lines(list(_named_lines(settings, options)), settings.events, time.time())
    outcomes = send_again(events, settings)
    if options.json:
        print_answer({"sent": len(outcomes), "outcomes": outcomes})
    else:
        _print_outcomes(outcomes)
    return Exit.FAILED if any(one["outcome"] == "quarantined" for one in outcomes) else Exit.DONE


def _named_lines(settings: Settings, options: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """Yield each line with its origin."""
    if options.file is not None:
        for number, line in enumerate(_read_file(options.file), 1):
            if line.strip():
                yield f"{options.file}:{number}", line.strip()
        return
    rows = _rows_of(settings, options.reason) if options.reason else (find_row(settings, name) for name in options.ids)
    for row in rows:
        yield row["row"], base64.b64decode(row["raw"])


def _read_file(path: Path) -> list[bytes]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CommandError(f"{path}: over {MAX_FILE_BYTES:,} bytes; `queryloop replay` sends a log", Exit.USAGE)
        return path.read_bytes().split(b"\n")
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error}", Exit.USAGE) from error


def _print_outcomes(outcomes: Sequence[Row]) -> None:
    for one in outcomes:
        why = f" ({one['reason']})" if one["reason"] else ""
        print(f"{one['from']}  {printable(one['event_id'])}  {one['outcome']}{why}")
    numbers = Counter(one["outcome"] for one in outcomes)
    print(", ".join(f"{number} {name}" for name, number in sorted(numbers.items())) or "nothing to send")
    if numbers["waits"]:
        print("waits: a click that counts once its impression has arrived, or is quarantined again as orphan_click")


def _time(ts_us: int | None) -> str:
    return "-" if ts_us is None else rfc3339(ts_us // 1_000_000)
