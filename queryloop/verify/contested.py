"""Contested ids: event ids of different lines, such as a refused click and its repair, decided one by one in log order.

The rule of repair: a line is a duplicate while an earlier line of its id counts or is pending, and is inside the retention. Else
it is attributed like a new event, and once accepted, the rows of its id leave quarantine. There are few such ids, so plain Python
follows each of them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import duckdb

ARRIVALS = """
WITH came AS (
    SELECT event_id, seq, before_us, after_us, 'click' AS kind, ts_us, impression_id, position, item FROM clicks
    UNION ALL SELECT event_id, seq, before_us, before_us, reason, 0, '', 0, NULL FROM refused WHERE event_id IS NOT NULL
    UNION ALL SELECT event_id, seq, before_us, after_us, 'taken', ts_us, '', 0, NULL FROM queries
    UNION ALL SELECT event_id, seq, before_us, after_us, 'taken', ts_us, '', 0, NULL FROM impressions
)
FROM came SEMI JOIN contested USING (event_id) ORDER BY event_id, seq
"""
VERSIONS = """
SELECT impression_id, seq, after_us, ts_us, event_id, items FROM versions
WHERE impression_id IN (SELECT impression_id FROM clicks SEMI JOIN contested USING (event_id))
ORDER BY seq
"""
FORGET_LATER = """
DELETE FROM later WHERE seq IN (
    SELECT seq
    FROM (SELECT seq, event_id FROM queries UNION ALL SELECT seq, event_id FROM impressions) SEMI JOIN contested USING (event_id)
)
"""
CLICK, TAKEN = "click", "taken"
COUNTED, PENDING, ORPHAN = "counted", "pending", "orphan_click"
ACCEPTED = (COUNTED, PENDING)
FOREVER_US = 2**62


class Limits(NamedTuple):
    """How long a click may follow its impression, waits for it and may precede it, and the shard's time, in microseconds."""

    window_us: int
    wait_us: int
    latest_us: int
    lead_us: int


class Line(NamedTuple):
    """One line of a contested id; `kind` is CLICK, TAKEN (a query or an impression) or the reason of its refusal."""

    event_id: str
    seq: int
    before_us: int
    after_us: int
    kind: str
    ts_us: int
    impression_id: str
    position: int
    item: str | None


class Version(NamedTuple):
    """One impression of an impression_id."""

    seq: int
    arrival_us: int
    ts_us: int
    event_id: str
    items: list[str]


@dataclass(slots=True)
class Decisions:
    """The outcomes of contested ids: accepted clicks, quarantine rows by reason, queries and impressions that are duplicates."""

    accepted: list[tuple[str, int, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    duplicates: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _IdState:
    """The state of one id while its lines are read.

    `holder` is the line that counts or is pending, `expired` those that did and are past the retention; `clicks` and `reasons`
    are its rows in quarantine: clicks that may be re-attributed, and the reasons of other lines.
    """

    holder: Line | None = None
    expired: list[Line] = field(default_factory=list)
    clicks: list[Line] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def accept(self, line: Line) -> None:
        """Make a line the holder of the id, and withdraw the id's rows from quarantine."""
        if self.holder is not None:
            self.expired.append(self.holder)
        self.holder, self.clicks, self.reasons = line, [], set()


def decide(con: duckdb.DuckDBPyConnection, limits: Limits, retention_us: int) -> Decisions:
    """Decide every id of the table `contested`; add its duplicate queries and impressions to the table `later`."""
    decisions = Decisions()
    versions: dict[str, list[Version]] = defaultdict(list)
    for impression_id, *version in con.execute(VERSIONS).fetchall():
        versions[impression_id].append(Version(*version))
    lines = (Line(*row) for row in con.execute(ARRIVALS).fetchall())
    for _, group in groupby(lines, key=lambda line: line.event_id):
        _follow(list(group), versions, limits, retention_us or FOREVER_US, decisions)
    con.execute(FORGET_LATER)
    if decisions.duplicates:
        con.executemany("INSERT INTO later VALUES (?)", [(seq,) for seq in decisions.duplicates])
    return decisions


def add_accepted(con: duckdb.DuckDBPyConnection, decisions: Decisions) -> None:
    """Add the accepted clicks to the table `chosen`."""
    if decisions.accepted:
        con.executemany("INSERT INTO chosen VALUES (?, ?, ?)", decisions.accepted)


def _follow(
    lines: list[Line], versions: dict[str, list[Version]], limits: Limits, retention_us: int, decisions: Decisions
) -> None:
    """Follow one id to the end of the log."""
    state, since = _IdState(), -1
    for line in lines:
        now = limits._replace(latest_us=line.before_us)
        _reattribute(state, versions, now, since, line.seq)
        since = line.seq
        if state.holder is not None and state.holder.ts_us >= line.after_us - retention_us:
            if line.kind == TAKEN:
                decisions.duplicates.append(line.seq)
        elif line.kind == TAKEN or (line.kind == CLICK and verdict(line, versions, now, line.seq) in (*ACCEPTED, ORPHAN)):
            state.accept(line)  # an orphan is accepted as pending for a moment, even where it is too late to wait
        elif line.kind == CLICK:
            state.clicks.append(line)
        else:
            state.reasons.add(line.kind)
    _reattribute(state, versions, limits, since, FOREVER_US)
    _record(state, versions, limits, decisions)


def _reattribute(state: _IdState, versions: dict[str, list[Version]], limits: Limits, since: int, seq: int) -> None:
    """Re-attribute the id's clicks by the impressions since its last line: the holder may be refused now, another click accepted.

    Impressions before that line were considered then: a click that counted does not withdraw what was refused after it.
    """
    if state.holder is not None and state.holder.kind == TAKEN:
        return
    clicks = [*([state.holder] if state.holder else []), *state.clicks]
    arrived = {v.seq: v.arrival_us for c in clicks for v in versions.get(c.impression_id, []) if max(c.seq, since) <= v.seq < seq}
    for at, latest_us in [*((s + 1, arrived[s]) for s in sorted(arrived)), (seq, limits.latest_us)]:
        moment = limits._replace(latest_us=latest_us)
        if state.holder is not None and verdict(state.holder, versions, moment, at) not in ACCEPTED:
            state.clicks.append(state.holder)
            state.holder = None
        fits = [c for c in sorted(state.clicks) if verdict(c, versions, moment, at) == COUNTED]
        if state.holder is None and fits:
            state.accept(fits[0])


def _record(state: _IdState, versions: dict[str, list[Version]], limits: Limits, decisions: Decisions) -> None:
    reasons = set(state.reasons)
    for click in [*state.expired, *([state.holder] if state.holder else []), *state.clicks]:
        if click.kind == CLICK:
            found = verdict(click, versions, limits, FOREVER_US)
            if found in ACCEPTED:
                decisions.accepted.append((click.impression_id, click.position, found))
            else:
                reasons.add(found)
    decisions.refused.update(reasons)


def verdict(click: Line, versions: dict[str, list[Version]], limits: Limits, seq: int) -> str:
    """Return the outcome of a click by the impressions before line `seq`: counted, pending or the reason of its refusal."""
    shown = [version for version in versions.get(click.impression_id, []) if version.seq < seq]
    if not any(_finds(click, version, limits) for version in shown):
        return PENDING if limits.latest_us <= click.ts_us + limits.wait_us else ORPHAN
    canonical = min(shown, key=lambda version: (version.ts_us, version.event_id))
    return next(_refusals(click, canonical, limits), COUNTED)


def _finds(click: Line, version: Version, limits: Limits) -> bool:
    in_time = version.seq < click.seq or version.arrival_us <= click.ts_us + limits.wait_us
    return version.ts_us <= click.ts_us + limits.lead_us and in_time


def _refusals(click: Line, canonical: Version, limits: Limits) -> Iterator[str]:
    if click.ts_us - canonical.ts_us > limits.window_us:
        yield "late_click"
    if click.position >= len(canonical.items):
        yield "position_out_of_range"
    elif click.item is not None and click.item != canonical.items[click.position]:
        yield "item_mismatch"
