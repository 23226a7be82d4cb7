"""The result files of an isolated replay: what was counted, summed over the shards, as CSV and JSON.

The CSV is the csv module's: comma, quotes where needed, a quote doubled, UTF-8, lines ended by a line feed. Texts are exactly
as they were counted. A query such as `=1+1` is therefore not escaped for spreadsheets: import the columns as text. Only in
quarantine.csv, which people open to see what is wrong, does a text that a spreadsheet would take for a formula begin with '.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

from streams.counting.windows import sum_windows
from streams.importers.log_files import Place
from streams.lake.reader import sum_cooccurrence
from streams.runtime.atomic_files import replace_file, replacing_file
from streams.store.held_shards import shard_path
from streams.store.shard import CountingRules, Shard

WINDOWS = ("query", "item", "position", "impressions", "clicks")
COOCCURRENCE = ("query", "next_query", "count")
QUARANTINE = ("event_id", "reason", "file", "unit", "number", "detail")
"""`file`, `unit` (line, row, answered row) and `number` say where the event is in the log, empty where that is not known."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
SUMMARY = "summary.json"

Locate = Callable[[set[bytes]], Mapping[bytes, Place]]


def write_results(
    data_dir: Path,
    partitions: int,
    rules: CountingRules,
    as_of: Sequence[date],
    out: Path,
    now: float,
    locate: Locate = lambda lines: {},
) -> dict[str, Any]:
    """Finish the shards of an ended log and write their tables; return their totals, and the number of rows of each table.

    One day: out/windows.csv and out/cooccurrence.csv; several: in a folder for each day. summary.json of an earlier run is
    removed first; the caller writes it last, so its presence means that the files beside it are complete and belong together.
    `locate` says where refused lines are in the log.
    """
    (out / SUMMARY).unlink(missing_ok=True)
    with ExitStack() as stack:
        shards = [Shard.open(shard_path(data_dir, partition), rules) for partition in range(partitions)]
        for shard in shards:
            stack.callback(shard.close)
        for shard in shards:
            shard.finish(now)
        rows = {}
        for day in as_of:
            folder = out if len(as_of) == 1 else out / day.isoformat()
            windows, pairs = sum_windows(s.windows(day) for s in shards), sum_cooccurrence(s.cooccurrence(day) for s in shards)
            write_csv(folder / "windows.csv", WINDOWS, _rows(windows))
            write_csv(folder / "cooccurrence.csv", COOCCURRENCE, _rows(pairs))
            rows[day.isoformat()] = {"windows": len(windows), "cooccurrence": len(pairs)}
        write_csv(out / "quarantine.csv", QUARANTINE, _quarantined(shards, locate))
        return {**_sum_totals(shards), "rows": rows}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table, durable and in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path, durable=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, the last of the files."""
    replace_file(out / SUMMARY, json.dumps(summary, indent=2, default=str).encode(), durable=True)


def _rows(table: Any) -> Iterable[Sequence[Any]]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)


def _quarantined(shards: Iterable[Shard], locate: Locate) -> list[tuple[str, ...]]:
    names = ["event_id", "reason", "detail", "raw"]
    rows = [row for shard in shards for row in shard.quarantine().select(names).to_pylist()]
    places = locate({row["raw"] for row in rows})
    return sorted(_quarantine_row(row, places.get(row["raw"])) for row in rows)


def _quarantine_row(row: Mapping[str, Any], place: Place | None) -> tuple[str, ...]:
    where = ("", "", "") if place is None else (place.file or "", place.unit, str(place.number))
    return tuple(map(_harmless, (row["event_id"] or "", row["reason"], *where, row["detail"])))


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA) else text


def _sum_totals(shards: Sequence[Shard]) -> dict[str, Any]:
    """Return the sum of the shards' totals: events = counted + duplicates + sum of quarantined, nothing pending after `finish`.

    `latest_ts` is the latest event time in seconds, None where no event was readable.
    """
    totals = [shard.totals() for shard in shards]
    reasons: Counter[str] = Counter()
    for one in totals:
        reasons.update(one.quarantined)
    numbers = {name: sum(getattr(one, name) for one in totals) for name in ("events", "counted", "duplicates", "pending")}
    latest_us = max((one.latest_us for one in totals if one.latest_us is not None), default=None)
    latest_ts = None if latest_us is None else latest_us / 1e6
    return {**numbers, "quarantined": dict(sorted(reasons.items())), "latest_ts": latest_ts}
