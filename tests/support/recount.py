"""An oracle for the streams room: every count recomputed in plain Python over the lines of a log.

It shares no code with the product: its own parsing, its own normalisation, sorting instead of order-independent bookkeeping. It
knows the meaning in DESIGN.md ("Meaning, exactly") for a log of which everything is kept.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

WINDOW = timedelta(days=14)
GAP_US = 30 * 60 * 10**6
ATTRIBUTION_US = 24 * 60 * 60 * 10**6


@dataclass
class Recount:
    """What a log holds: impressions by id with the positions clicked, co-occurring pairs, quarantined (event_id, reason)."""

    impressions: dict[str, dict[str, Any]] = field(default_factory=dict)
    clicked: dict[tuple[str, int], int] = field(default_factory=dict)
    pairs: list[tuple[date, str, str]] = field(default_factory=list)
    quarantined: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    lines: int = 0
    counted: int = 0

    def windows(self, as_of: date) -> list[tuple[str, str, int, int, int]]:
        """Sorted (query, item, position, impressions, clicks) of the 14 days before as_of."""
        shown: Counter[tuple[str, str, int]] = Counter()
        clicks: Counter[tuple[str, str, int]] = Counter()
        for name, event in self.impressions.items():
            if as_of - WINDOW <= day_of(event["us"]) < as_of:
                for position, item in enumerate(event["items"]):
                    cell = (fold(event["query"]), fold(item), position)
                    shown[cell] += 1
                    clicks[cell] += (name, position) in self.clicked
        return sorted((*cell, number, clicks[cell]) for cell, number in shown.items())

    def cooccurrence(self, as_of: date) -> list[tuple[str, str, int]]:
        """Sorted (query, next_query, count) of the 14 days before as_of."""
        counts = Counter((first, second) for day, first, second in self.pairs if as_of - WINDOW <= day < as_of)
        return sorted((first, second, number) for (first, second), number in counts.items())


def recount(lines: Iterable[bytes]) -> Recount:
    """Recount a log, one event a line."""
    result = Recount()
    events: dict[str, dict[str, Any]] = {}
    for line in lines:
        if line.strip():
            result.lines += 1
            take(line, events, result)
    by_type: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in sorted(events.values(), key=lambda e: (e["us"], e["event_id"])):
        by_type[event["type"]].append(event)
    for event in by_type["impression"]:
        result.impressions.setdefault(event["impression_id"], event)
    for event in by_type["click"]:
        judge(event, result)
    pair(by_type["query"], result)
    result.counted += len(by_type["query"]) + len(result.impressions)
    return result


def take(line: bytes, events: dict[str, dict[str, Any]], result: Recount) -> None:
    """File a line under its event_id, or in quarantine."""
    try:
        event = json.loads(line.decode("utf-8"))
    except ValueError:
        result.quarantined[None, "malformed"] = 1
        return
    needed = {"type", "event_id", "ts", "session_id", "query"}
    needed |= {"impression": {"impression_id", "items"}, "click": {"impression_id", "position"}}.get(event.get("type"), set())
    if not needed <= event.keys():
        result.quarantined[event.get("event_id"), "invalid"] = 1
        return
    event["us"] = micros(event["ts"])
    events.setdefault(event["event_id"], event)


def judge(click: dict[str, Any], result: Recount) -> None:
    """Count a click on its impression, or say why not."""
    impression = result.impressions.get(click["impression_id"])
    reason = None
    if impression is None or impression["us"] > click["us"]:
        reason = "orphan_click"
    elif click["us"] - impression["us"] > ATTRIBUTION_US:
        reason = "late_click"
    elif click["position"] >= len(impression["items"]):
        reason = "position_out_of_range"
    elif click.get("item") is not None and fold(click["item"]) != fold(impression["items"][click["position"]]):
        reason = "item_mismatch"
    if reason:
        result.quarantined[click["event_id"], reason] = 1
        return
    result.counted += 1
    result.clicked.setdefault((click["impression_id"], click["position"]), click["us"])


def pair(queries: list[dict[str, Any]], result: Recount) -> None:
    """Find the pairs of consecutive user queries in each session; queries come sorted by (ts, event_id)."""
    sessions: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in queries:
        if event.get("source", "user") == "user":
            sessions[event["session_id"]].append(event)
    for events in sessions.values():
        for first, second in itertools.pairwise(events):
            near = second["us"] - first["us"] <= GAP_US
            if near and fold(first["query"]) != fold(second["query"]):
                result.pairs.append((day_of(first["us"]), fold(first["query"]), fold(second["query"])))


def fold(text: str) -> str:
    """Compatibility-composed, case-folded, white space collapsed."""
    words = unicodedata.normalize("NFKC", text).casefold().split()
    return " ".join(words)


def micros(ts: float | str) -> int:
    """Microseconds since the epoch, exactly as the decimal number or the RFC 3339 time says, rounded half to even."""
    if isinstance(ts, str):
        moment = datetime.fromisoformat(ts)
        return round(Fraction((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)))
    return round(Fraction(repr(ts)) * 10**6)


def day_of(us: int) -> date:
    """The UTC day."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).date()
