"""A second oracle: a log recounted line by line in order of arrival, with the rule of repair, in plain Python.

`tests.support.recount` sorts a log in which each event has one version; here an event id may come in several, some of them
bad. It follows the rule literally: one line at a time, an id's clicks judged anew when something changes. For a log of which
all is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.support.recount import ATTRIBUTION_US, Recount, fold, micros, pair

NEEDED = {"impression": {"impression_id", "items"}, "click": {"impression_id", "position"}}


@dataclass
class Ledger:
    """Who holds each id, which bad versions are in quarantine (by id, reason), which refused clicks may fit later.

    Several versions that were refused for one reason share a row, and each of them may fit later.
    """

    held: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[tuple[Any, str], Any] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)
    standing: dict[str, dict[str, Any]] = field(default_factory=dict)

    def arrive(self, line: bytes) -> None:
        """Take one line in."""
        try:
            event = json.loads(line.decode("utf-8"))
        except ValueError:
            self.rows.setdefault((line, "malformed"))
            return
        name = event["event_id"]
        if name in self.held:
            return
        needed = {"type", "event_id", "ts", "session_id", "query"} | NEEDED.get(event.get("type"), set())
        if not needed <= event.keys():
            self.rows.setdefault((name, "invalid"))
            return
        event["us"] = micros(event["ts"])
        if event["type"] == "click":
            self.judge(event)
            return
        self.hold(event)
        if event["type"] == "impression":
            self.show(event)

    def show(self, event: dict[str, Any]) -> None:
        """Let an impression stand, if it is the earliest of its id, and judge that id's clicks anew."""
        before = self.standing.get(event["impression_id"])
        if before and (before["us"], before["event_id"]) < (event["us"], event["event_id"]):
            return
        self.standing[event["impression_id"]] = event
        waiting = [e for e in self.held.values() if e["type"] == "click" and e["impression_id"] == event["impression_id"]]
        reopened = [e for e in self.refused if e["impression_id"] == event["impression_id"]]
        self.refused = [e for e in self.refused if e["impression_id"] != event["impression_id"]]
        still = {(e["event_id"], e["reason"]) for e in self.refused}
        for name in {(click["event_id"], click["reason"]) for click in reopened} - still:
            del self.rows[name]
        for click in waiting:
            del self.held[click["event_id"]]
        for click in waiting + reopened:
            if click["event_id"] not in self.held:
                self.judge(click)

    def judge(self, click: dict[str, Any]) -> None:
        """Let a click count or wait, or refuse it."""
        reason = self.fault(click)
        if reason is None:
            self.hold(click)
        else:
            self.rows[click["event_id"], reason] = None
            self.refused.append(click | {"reason": reason})

    def fault(self, click: dict[str, Any]) -> str | None:
        """Say what is wrong with a click; nothing is while its impression has not come."""
        shown = self.standing.get(click["impression_id"])
        if shown is None or shown["us"] > click["us"]:
            return None
        if click["us"] - shown["us"] > ATTRIBUTION_US:
            return "late_click"
        if click["position"] >= len(shown["items"]):
            return "position_out_of_range"
        if click.get("item") is not None and fold(click["item"]) != fold(shown["items"][click["position"]]):
            return "item_mismatch"
        return None

    def hold(self, event: dict[str, Any]) -> None:
        """Take an event in: the bad versions of its id are repaired."""
        name = event["event_id"]
        self.held[name] = event
        self.rows = {key: None for key in self.rows if key[0] != name}
        self.refused = [click for click in self.refused if click["event_id"] != name]

    def counts(self, lines: int) -> Recount:
        """Return the counts when the log has ended: what still waits is an orphan."""
        result = Recount(lines=lines, impressions=self.standing)
        events = sorted(self.held.values(), key=lambda e: (e["us"], e["event_id"]))
        for click in (e for e in events if e["type"] == "click"):
            shown = self.standing.get(click["impression_id"])
            if shown is None or shown["us"] > click["us"]:
                self.rows[click["event_id"], "orphan_click"] = None
                continue
            result.counted += 1
            result.clicked.setdefault((click["impression_id"], click["position"]), click["us"])
        queries = [e for e in events if e["type"] == "query"]
        pair(queries, result)
        result.counted += len(queries) + len(self.standing)
        for name, reason in self.rows:
            result.quarantined[None if isinstance(name, bytes) else name, reason] += 1
        return result


def recount_arrivals(lines: Iterable[bytes]) -> Recount:
    """Recount a log in order of arrival."""
    ledger, number = Ledger(), 0
    for line in lines:
        number += 1
        ledger.arrive(line)
    return ledger.counts(number)
