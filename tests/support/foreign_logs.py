"""Invented foreign logs: visits to write in the form of each, and a plain recount of which list a click belongs to."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from streams.events.line_decoder import parse_line
from streams.events.schema import Event, Reject
from streams.importers.log_files import read_log
from streams.importers.mapping import read_mapping
from tests.support.logs import START

Fact = tuple[Any, ...]


def mapped(path: Path, name: str) -> tuple[list[Event], list[dict[str, Any]]]:
    """The events of a log by a mapping that ships, and the lines that are refused."""
    return judge(read_log(path, read_mapping(Path(name))))


def judge(lines: Iterable[bytes]) -> tuple[list[Event], list[dict[str, Any]]]:
    events: list[Event] = []
    refused = []
    for line in lines:
        found = parse_line(line)
        if isinstance(found, Reject):
            refused.append(json.loads(line) | {"detail": found.detail})
        else:
            events.append(found)
    return events, refused


def facts(events: list[Event]) -> list[Fact]:
    """What counts of events: type, time, session, query, list, and what was shown or clicked."""
    return sorted(
        (
            str(event.__struct_config__.tag),
            event.ts_us,
            event.session_id,
            event.query,
            getattr(event, "impression_id", ""),
            getattr(event, "items", ()),
            getattr(event, "position", -1),
        )
        for event in events
    )


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def iso(ts: float) -> str:
    return datetime.fromtimestamp(ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def micros(ts: float) -> int:
    return round(ts * 1_000_000)


def draw_visits(seed: int) -> list[tuple[str, float, str, list[str], list[int]]]:
    """Searches with what was shown and which places were clicked: (session, time, words, items, places)."""
    chance = random.Random(seed)
    visits = []
    for number in range(120):
        session, ts = f"s{number % 25}", START + number * 400 + chance.randrange(100)
        items = chance.sample([f"item {letter}" for letter in "abcdefghij"], chance.randint(1, 5))
        clicked = [place for place in range(len(items)) if chance.random() < 0.3]
        visits.append((session, float(ts), chance.choice(["red shoes", "blue  hat", "straße", '"x", y']), items, clicked))
    return visits


def recount_lists(calls: list[tuple[str, str, float, str | None, list[str], str]]) -> tuple[list[Fact], int]:
    """Attribute lists to the latest search and clicks to the latest list: (kind, session, time, words, items, id) in order."""
    expected: list[Fact] = []
    refused = 0
    searches: dict[str, tuple[float, str]] = {}
    lists: dict[str, list[tuple[str, str | None, list[str]]]] = {}
    for kind, session, ts, words, items, event_id in sorted(calls, key=lambda call: call[2]):
        if kind == "search":
            assert words is not None
            searches[session] = (ts, words)
            expected.append(("query", micros(ts), session, words, "", (), -1))
        elif kind == "list":
            at, asked = searches.get(session, (0.0, ""))
            query = asked if ts - at <= 1800 else None
            lists.setdefault(session, []).append((event_id, query, items))
            if query is None:
                refused += 1
            else:
                expected.append(("impression", micros(ts), session, query, event_id, tuple(items), -1))
        else:
            found = next((one for one in reversed(lists.get(session, [])) if items[0] in one[2]), None)
            if found is None or found[1] is None:
                refused += 1
            else:
                expected.append(("click", micros(ts), session, found[1], found[0], (), found[2].index(items[0])))
    return expected, refused
