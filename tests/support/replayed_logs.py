"""Logs for replays, and what the result files of an isolated replay must say."""

from __future__ import annotations

import csv
import gzip
import os
import random
from datetime import date
from pathlib import Path

import pytest

from streams.brokers.jars import missing_tool
from tests.support.logs import START, click, impression, query
from tests.support.recount import Recount

TEXTS = [
    "red shoes",
    "Red  Shoes",
    "ｒｅｄ shoes",
    'a "quoted", comma',
    "=1+1",
    "<b>bold</b>",
    "straße",
    "STRASSE",
    "'; DROP TABLE x",
]


def make_log(seed: int, sessions: int) -> list[bytes]:
    """Sessions with lists and clicks over 20 days; 5 % twice, some out of order, late, orphaned, malformed, unusable."""
    chance = random.Random(seed)
    lines: list[bytes] = []
    for number in range(sessions):
        ts, name = START + chance.uniform(0, 20 * 86_400), f"s{number}"
        for step in range(chance.randint(1, 3)):
            ts, key = ts + chance.choice([20, 400, 2500]), f"{number}-{step}"
            lines.append(query(f"q{key}", ts, chance.choice(TEXTS), session_id=name))
            lines.append(
                impression(f"i{key}", ts + 1, f"L{key}", chance.sample(TEXTS, 3), session_id=name, query=chance.choice(TEXTS))
            )
            if chance.random() < 0.4:
                delay = chance.choice([3.0, 60.0, 80_000.0, 90_000.0])
                lines.append(click(f"c{key}", ts + 1 + delay, f"L{key}", chance.randint(0, 3), session_id=name))
    lines += chance.choices(lines, k=len(lines) // 20)
    for swap in range(len(lines) // 10):
        lines[swap * 10], lines[swap * 10 + 5] = lines[swap * 10 + 5], lines[swap * 10]
    lines += [click("orphan", START + 5, "nowhere"), b"{not json", b'{"type":"query","event_id":"short"}']
    return lines


def write_log(path: Path, lines: list[bytes]) -> Path:
    """A gzip log of these lines."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"\n".join(lines) + b"\n")
    return path


def read_table(path: Path) -> list[tuple[str, ...]]:
    """Header and rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


def texts(rows: list[tuple[object, ...]]) -> list[tuple[str, ...]]:
    return [tuple(map(str, row)) for row in rows]


def assert_results(out: Path, expected: Recount, as_of: list[date]) -> None:
    """The files say what the recount says, in its order."""
    for one in as_of:
        folder = out / one.isoformat() if len(as_of) > 1 else out
        header, *rows = read_table(folder / "windows.csv")
        assert header == ("query", "item", "position", "impressions", "clicks")
        assert rows == texts(expected.windows(one)), one
        header, *rows = read_table(folder / "cooccurrence.csv")
        assert header == ("query", "next_query", "count")
        assert rows == texts(expected.cooccurrence(one)), one
    header, *rows = read_table(out / "quarantine.csv")
    assert header == ("event_id", "reason", "file", "unit", "number", "detail")
    assert {row[:2] for row in rows} == {(event_id or "", reason) for event_id, reason in expected.quarantined}
    assert rows == sorted(rows)


def require(kind: str) -> None:
    if kind == "kafka" and (reason := missing_tool()):
        (pytest.fail if os.environ.get("REQUIRE_KAFKA") else pytest.skip)(f"real Kafka cannot run here: {reason}")


def read_results(out: Path) -> dict[str, object]:
    """The tables by name, without the places in the log, which differ by its format."""
    found: dict[str, object] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.csv")}
    return found | {"quarantine.csv": [row[:2] + row[5:] for row in read_table(out / "quarantine.csv")]}
