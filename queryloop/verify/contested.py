"""Contested ids: those of which different lines came (a refused click and its repair), decided one by one in log order.

The rule of repair: a line is a duplicate while an earlier line of its id counts or waits, and is inside the retention. Otherwise
it is judged like a new event; once it is taken in, what quarantine held of its id is withdrawn. There are few such ids, so plain
Python follows each of them.
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
    SELECT event_id, seq, before_us, 'click' AS kind, ts_us, impression_id, position, item FROM clicks
    UNION ALL SELECT event_id, seq, before_us, reason, 0, '', 0, NULL FROM refused WHERE event_id IS NOT NULL
    UNION ALL SELECT event_id, seq, before_us, 'taken', ts_us, '', 0, NULL FROM queries
    UNION ALL SELECT event_id, seq, before_us, 'taken', ts_us, '', 0, NULL FROM impressions
)
FROM came SEMI JOIN contested USING (event_id) ORDER BY event_id, seq
"""
VERSIONS = """
SELECT impression_id, seq, greatest(before_us, ts_us), ts_us, event_id, items FROM versions
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
TAKEN_IN = (COUNTED, PENDING)
FOREVER_US = 2**62


class Waiting(NamedTuple):
    """For how long a click may follow its impression, for how long it waits for one, and the latest event time; microseconds."""

    window_us: int
    patience_us: int
    latest_us: int


class Line(NamedTuple):
    """One line of a contested id; `kind` is CLICK, TAKEN (a query or an impression) or the reason it was refused for."""

    event_id: str
    seq: int
    before_us: int
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
class Told:
    """What became of contested ids: clicks that count or wait, rows of quarantine by reason, other lines that are duplicates."""

    taken: list[tuple[str, int, str]] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    later: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Id:
    """One id as its lines come.

    `holder` is the line that counts or waits, `kept` those that did and that the retention has passed, `clicks` and `reasons` are
    what quarantine holds: clicks that may still be judged anew, and other lines.
    """

    holder: Line | None = None
    kept: list[Line] = field(default_factory=list)
    clicks: list[Line] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)

    def take(self, line: Line) -> None:
        """Let a line hold the id; what quarantine had of it is withdrawn."""
        if self.holder is not None:
            self.kept.append(self.holder)
        self.holder, self.clicks, self.reasons = line, [], set()


def decide(con: duckdb.DuckDBPyConnection, waiting: Waiting, retention_us: int) -> Told:
    """Decide every id in the table `contested`, and say in the table `later` which of their queries and impressions repeat."""
    told = Told()
    versions: dict[str, list[Version]] = defaultdict(list)
    for impression_id, *version in con.execute(VERSIONS).fetchall():
        versions[impression_id].append(Version(*version))
    lines = (Line(*row) for row in con.execute(ARRIVALS).fetchall())
    for _, group in groupby(lines, key=lambda line: line.event_id):
        _follow(list(group), versions, waiting, retention_us or FOREVER_US, told)
    con.execute(FORGET_LATER)
    if told.later:
        con.executemany("INSERT INTO later VALUES (?)", [(seq,) for seq in told.later])
    return told


def add_counted(con: duckdb.DuckDBPyConnection, told: Told) -> None:
    """Put the contested clicks that count or wait into the table `chosen`."""
    if told.taken:
        con.executemany("INSERT INTO chosen VALUES (?, ?, ?)", told.taken)


def _follow(lines: list[Line], versions: dict[str, list[Version]], waiting: Waiting, retention_us: int, told: Told) -> None:
    """Follow one id to the end of the log."""
    state, since = _Id(), -1
    for line in lines:
        now = waiting._replace(latest_us=line.before_us)
        _stir(state, versions, now, since, line.seq)
        since = line.seq
        if state.holder is not None and state.holder.ts_us >= max(line.before_us, line.ts_us) - retention_us:
            if line.kind == TAKEN:
                told.later.append(line.seq)
        elif line.kind == TAKEN or (line.kind == CLICK and verdict(line, versions, now, line.seq) in (*TAKEN_IN, ORPHAN)):
            state.take(line)  # a click that comes too late to wait waits for a moment
        elif line.kind == CLICK:
            state.clicks.append(line)
        else:
            state.reasons.add(line.kind)
    _stir(state, versions, waiting, since, FOREVER_US)
    _tell(state, versions, waiting, told)


def _stir(state: _Id, versions: dict[str, list[Version]], waiting: Waiting, since: int, seq: int) -> None:
    """Let what came since the last line take its effect: a click that held the id may have lost it, another one gained it.

    What came before that line has had its effect: a click that counted then does not withdraw what was refused afterwards.
    """
    if state.holder is not None and state.holder.kind == TAKEN:
        return
    clicks = [*([state.holder] if state.holder else []), *state.clicks]
    came = {v.seq: v.arrival_us for c in clicks for v in versions.get(c.impression_id, []) if max(c.seq, since) <= v.seq < seq}
    for at, latest_us in [*((s + 1, came[s]) for s in sorted(came)), (seq, waiting.latest_us)]:
        moment = waiting._replace(latest_us=latest_us)
        if state.holder is not None and verdict(state.holder, versions, moment, at) not in TAKEN_IN:
            state.clicks.append(state.holder)
            state.holder = None
        fits = [c for c in sorted(state.clicks) if verdict(c, versions, moment, at) == COUNTED]
        if state.holder is None and fits:
            state.take(fits[0])


def _tell(state: _Id, versions: dict[str, list[Version]], waiting: Waiting, told: Told) -> None:
    reasons = set(state.reasons)
    for click in [*state.kept, *([state.holder] if state.holder else []), *state.clicks]:
        if click.kind == CLICK:
            found = verdict(click, versions, waiting, FOREVER_US)
            if found in TAKEN_IN:
                told.taken.append((click.impression_id, click.position, found))
            else:
                reasons.add(found)
    told.refused.update(reasons)


def verdict(click: Line, versions: dict[str, list[Version]], waiting: Waiting, seq: int) -> str:
    """What a click is, on what came before line `seq` of the log: counted, pending or the reason that it is refused for."""
    shown = [version for version in versions.get(click.impression_id, []) if version.seq < seq]
    if not any(_meets(click, version, waiting) for version in shown):
        return PENDING if waiting.latest_us <= click.ts_us + waiting.patience_us else ORPHAN
    standing = min(shown, key=lambda version: (version.ts_us, version.event_id))
    return next(_faults(click, standing, waiting), COUNTED)


def _meets(click: Line, version: Version, waiting: Waiting) -> bool:
    in_time = version.seq < click.seq or version.arrival_us <= click.ts_us + waiting.patience_us
    return version.ts_us <= click.ts_us and in_time


def _faults(click: Line, standing: Version, waiting: Waiting) -> Iterator[str]:
    if click.ts_us - standing.ts_us > waiting.window_us:
        yield "late_click"
    if click.position >= len(standing.items):
        yield "position_out_of_range"
    elif click.item is not None and click.item != standing.items[click.position]:
        yield "item_mismatch"
