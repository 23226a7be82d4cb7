"""An oracle for the streams room: a log recounted in plain Python, literally, line by line in the order of arrival.

It shares no code with the product: its own parsing, its own normal form, whole lists and dictionaries instead of deltas. It knows
the meaning in DESIGN.md ("Meaning, exactly") and the rule of repair, for a log of which everything is kept.
"""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

WINDOW = timedelta(days=14)
GAP_US = 30 * 60 * 10**6
ATTRIBUTION_US = 24 * 60 * 60 * 10**6
CONTROLS = [code for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and not chr(code).isspace()]
NUMBER_SIGNS = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2}
FORMATS = [code for code in range(0xAD, 0xFFFC) if unicodedata.category(chr(code)) == "Cf" and code not in NUMBER_SIGNS]
NOT_SEEN = {*CONTROLS, *FORMATS, 0x34F, 0x115F, 0x1160, 0x3164, 0xFFA0} - {0x200C, 0x200D, 0x180E}
LEAD_US = 5 * 60 * 10**6
NEEDED = {"impression": {"impression_id", "items"}, "click": {"impression_id", "position"}}

Event = dict[str, Any]
Name = tuple[str, str]
"""An id in its session: what another session calls the same is something else."""


@dataclass
class Recount:
    """What a log counts: impressions by id with the positions clicked, quarantined (event_id, reason).

    `pairs` are co-occurring queries with their session and user, in the order of time.
    """

    impressions: dict[Name, Event] = field(default_factory=dict)
    clicked: dict[tuple[Name, int], int] = field(default_factory=dict)
    pairs: list[tuple[date, str, str, str, str | None]] = field(default_factory=list)
    quarantined: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    counted: int = 0

    def windows(
        self, as_of: date, session_cap: int | None = None, user_cap: int | None = None
    ) -> list[tuple[str, str, int, int, int]]:
        """Sorted (query, item, position, impressions, clicks) of the 14 days before as_of.

        Of the lists that one session, or one user, got for a query on a day only the first ones count, where there is a cap.
        """
        had: Counter[tuple[str, str, date, str]] = Counter()
        shown: Counter[tuple[str, str, int]] = Counter()
        clicks: Counter[tuple[str, str, int]] = Counter()
        for name, event in sorted(self.impressions.items(), key=lambda one: (one[1]["us"], *name_of(one[1]))):
            if is_over(had, event["session_id"], event.get("user_id"), day_of(event["us"]), normal_form(event["query"]))(
                session_cap, user_cap
            ):
                continue
            if as_of - WINDOW <= day_of(event["us"]) < as_of:
                for position, item in enumerate(event["items"]):
                    cell = (normal_form(event["query"]), normal_form(item), position)
                    shown[cell] += 1
                    clicks[cell] += (name, position) in self.clicked
        return sorted((*cell, number, clicks[cell]) for cell, number in shown.items())

    def cooccurrence(
        self, as_of: date, session_cap: int | None = None, user_cap: int | None = None
    ) -> list[tuple[str, str, int]]:
        """Sorted (query, next_query, count) of the 14 days before as_of; of equal pairs of a session or user the first ones."""
        had: Counter[tuple[str, str, date, str]] = Counter()
        counts: Counter[tuple[str, str]] = Counter()
        for day, first, second, session_id, user_id in self.pairs:
            over = is_over(had, session_id, user_id, day, f"{first}\0{second}")(session_cap, user_cap)
            counts[first, second] += not over and as_of - WINDOW <= day < as_of
        counts = +counts
        return sorted((first, second, number) for (first, second), number in counts.items())


@dataclass
class Ledger:
    """What the lines so far came to.

    `accepted` has for each id the event that counts or waits. `quarantine` has the reasons of an id's refused versions, of a line
    without an id by its bytes. `refused` are clicks that did not fit their impression and may fit an earlier one: several of one
    id and reason share a row. `canonical` is the earliest impression of each impression_id.
    """

    accepted: dict[Name, Event] = field(default_factory=dict)
    clicks_on: dict[Name, dict[Name, Event]] = field(default_factory=lambda: defaultdict(dict))
    quarantine: dict[Name | bytes, set[str]] = field(default_factory=lambda: defaultdict(set))
    refused: list[Event] = field(default_factory=list)
    canonical: dict[Name, Event] = field(default_factory=dict)

    def receive(self, line: bytes) -> None:
        """Count, keep waiting or refuse one line."""
        try:
            event = json.loads(line.decode("utf-8"))
        except ValueError:
            self.quarantine[line].add("malformed")
            return
        name = name_of(event) if "event_id" in event else None
        if name in self.accepted:
            return
        needed = {"type", "event_id", "ts", "session_id", "query"} | NEEDED.get(event.get("type"), set())
        if not needed <= event.keys():
            self.quarantine[line if name is None else name].add("invalid")
            return
        event["us"] = micros(event["ts"])
        if event["type"] == "click":
            self.judge(event)
            return
        self.accept(event)
        if event["type"] == "impression":
            self.show(event)

    def show(self, event: Event) -> None:
        """Make an impression the canonical one, if it is the earliest of its id, and judge that id's clicks anew."""
        shown = list_of(event)
        before = self.canonical.get(shown)
        if before and (before["us"], before["event_id"]) < (event["us"], event["event_id"]):
            return
        self.canonical[shown] = event
        accepted = list(self.clicks_on.pop(shown, {}).values())
        refused = [e for e in self.refused if list_of(e) == shown]
        self.refused = [e for e in self.refused if list_of(e) != shown]
        still_refused = {(name_of(e), e["reason"]) for e in self.refused}
        for name, reason in {(name_of(click), click["reason"]) for click in refused} - still_refused:
            self.quarantine[name].remove(reason)
        for click in accepted:
            del self.accepted[name_of(click)]
        for click in accepted + refused:
            if name_of(click) not in self.accepted:
                self.judge(click)

    def judge(self, click: Event) -> None:
        """Let a click count or wait, or refuse it."""
        reason = self.fault(click)
        if reason is None:
            self.accept(click)
        else:
            self.quarantine[name_of(click)].add(reason)
            self.refused.append(click | {"reason": reason})

    def fault(self, click: Event) -> str | None:
        """Say what is wrong with a click; nothing is while it waits for its impression."""
        if self.waits(click):
            return None
        shown = self.canonical[list_of(click)]
        if click["us"] - shown["us"] > ATTRIBUTION_US:
            return "late_click"
        if click["position"] >= len(shown["items"]):
            return "position_out_of_range"
        if click.get("item") is not None and normal_form(click["item"]) != normal_form(shown["items"][click["position"]]):
            return "item_mismatch"
        return None

    def waits(self, click: Event) -> bool:
        """Say whether no impression of the click's list, at its time, before it or a little after it, has been received."""
        shown = self.canonical.get(list_of(click))
        return shown is None or shown["us"] > click["us"] + LEAD_US

    def accept(self, event: Event) -> None:
        """Let an event count or wait: what quarantine has of its id is repaired."""
        name = name_of(event)
        self.accepted[name] = event
        if event["type"] == "click":
            self.clicks_on[list_of(event)][name] = event
        if self.quarantine.pop(name, None):
            self.refused = [click for click in self.refused if name_of(click) != name]

    def finish(self) -> Recount:
        """Return the counts when the log has ended: a click that still waits is an orphan."""
        result = Recount(impressions=self.canonical)
        events = sorted(self.accepted.values(), key=lambda e: (e["us"], e["event_id"]))
        for click in (e for e in events if e["type"] == "click"):
            if self.waits(click):
                self.quarantine[name_of(click)].add("orphan_click")
                continue
            result.counted += 1
            result.clicked.setdefault((list_of(click), click["position"]), click["us"])
        queries = [e for e in events if e["type"] == "query"]
        result.pairs = pair(queries)
        result.counted += len(queries) + len(self.canonical)
        for name, reasons in self.quarantine.items():
            result.quarantined.update((None if isinstance(name, bytes) else name[1], reason) for reason in reasons)
        return result


def name_of(event: Event) -> Name:
    """The event's id in its session."""
    return event.get("session_id", ""), event["event_id"]


def list_of(event: Event) -> Name:
    """The list of an impression or a click: its impression_id in its session."""
    return event["session_id"], event["impression_id"]


def recount(lines: Iterable[bytes]) -> Recount:
    """Recount a log, one event a line."""
    ledger = Ledger()
    for line in lines:
        if line.strip():
            ledger.receive(line)
    return ledger.finish()


def is_over(
    had: Counter[tuple[str, str, date, str]], session_id: str, user_id: str | None, day: date, what: str
) -> Callable[[int | None, int | None], bool]:
    """Count one more of something for its session and its user, and return whether either has more than its cap."""
    had["session", session_id, day, what] += 1
    had["user", user_id or "", day, what] += 1
    of_session, of_user = had["session", session_id, day, what], had["user", user_id or "", day, what]
    return lambda session_cap, user_cap: bool(
        (session_cap and of_session > session_cap) or (user_id and user_cap and of_user > user_cap)
    )


def pair(queries: list[Event]) -> list[tuple[date, str, str, str, str | None]]:
    """Find the pairs of consecutive user queries in each session; queries are sorted by (ts, event_id)."""
    sessions: dict[str, list[Event]] = defaultdict(list)
    for event in queries:
        if event.get("source", "user") == "user":
            sessions[event["session_id"]].append(event)
    found = []
    for events in sessions.values():
        for first, second in itertools.pairwise(events):
            texts = normal_form(first["query"]), normal_form(second["query"])
            if second["us"] - first["us"] <= GAP_US and texts[0] != texts[1]:
                whose = first["session_id"], first.get("user_id")
                place = first["us"], first["session_id"], first["event_id"]
                found.append((place, (day_of(first["us"]), *texts, *whose)))
    return [one for _, one in sorted(found, key=lambda one: one[0])]


def normal_form(text: str) -> str:
    """Compatibility-composed, case-folded, without characters that nobody sees, white space collapsed.

    Joiners, emoji selectors and tags are left as they are: in the logs of the tests they are only where a script needs them.
    """
    words = unicodedata.normalize("NFKC", text.translate(dict.fromkeys(NOT_SEEN))).casefold().split()
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
