"""Attribution: which impression a click belongs to, and whether it counts.

Every click is judged against the earliest impression of its impression_id. A click that comes first waits in `pending`, and
when an earlier impression replaces the one on file its clicks are judged anew. So the order of arrival does not matter.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date

import duckdb
import pyarrow.compute as pc

from streams import impressions, quarantine, windows
from streams.intake import Batch
from streams.rules import CountingRules

CLICK = """
    ts_us BIGINT, key UBIGINT, impression_id VARCHAR, event_id VARCHAR, position BIGINT, item_norm VARCHAR,
    raw BLOB, log_offset BIGINT, line BIGINT"""
TABLES = f"CREATE TABLE clicks ({CLICK}, reason VARCHAR, delay_us BIGINT); CREATE TABLE pending ({CLICK});"
"""`key` is hash(impression_id), `reason` null where the click counts, else why not, `delay_us` its time after the impression."""

# When each version of an impression came: a click waits only for one that comes while it still waits.
VERSIONS = """
CREATE OR REPLACE TEMP TABLE versions AS
SELECT impression_id, ts_us, seq, arrival_us FROM fresh_impressions
UNION ALL
SELECT impression_id, ts_us, -1, 0 FROM known_impressions
"""

CANDIDATES = """
CREATE OR REPLACE TEMP TABLE candidates AS
SELECT 'fresh' AS origin, seq, ts_us, hash(impression_id) AS key, impression_id, event_id, position, item_norm,
    raw, log_offset, line
FROM fresh_clicks
UNION ALL
SELECT 'pending', -1, * FROM pending WHERE impression_id IN (SELECT impression_id FROM versions)
UNION ALL
SELECT 'reopened', -1, * EXCLUDE (reason, delay_us) FROM reopened
"""
FIRST_CANDIDATE = "SELECT min(ts_us) FROM candidates"

FOUND = """
CREATE OR REPLACE TEMP TABLE found AS
WITH hits AS MATERIALIZED (
    SELECT c.event_id, i.impression_id AS shown_id, i.ts_us AS shown_us, i.day, i.query_norm, len(i.items) AS shown,
        coalesce(i.items_norm, i.items)[c.position + 1] AS shown_norm
    FROM impressions i JOIN candidates c ON i.key = c.key
)
SELECT * FROM hits JOIN candidates c USING (event_id) WHERE shown_id = c.impression_id
"""

ALL_TIMELY = "CREATE OR REPLACE TEMP TABLE given_up AS SELECT event_id FROM candidates LIMIT 0"
GIVEN_UP = """
CREATE OR REPLACE TEMP TABLE given_up AS
SELECT c.event_id FROM candidates c JOIN versions v USING (impression_id)
WHERE c.origin <> 'reopened'
GROUP BY c.event_id
HAVING NOT bool_or(v.ts_us <= c.ts_us AND (v.seq < c.seq OR v.arrival_us <= c.ts_us + $window))
"""

JUDGED = """
CREATE OR REPLACE TEMP TABLE judged AS
SELECT *, shown_us > ts_us OR event_id IN (FROM given_up) AS waits, ts_us - shown_us AS delay_us,
    CASE
        WHEN ts_us - shown_us > $window THEN 'late_click'
        WHEN position >= shown THEN 'position_out_of_range'
        WHEN item_norm <> shown_norm THEN 'item_mismatch'
    END AS reason
FROM found
"""

STOP_WAITING = "DELETE FROM pending WHERE event_id IN (SELECT event_id FROM judged WHERE NOT waits AND origin = 'pending')"
WAIT = """
INSERT INTO pending
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line
FROM candidates
WHERE origin = 'fresh' AND event_id NOT IN (SELECT event_id FROM judged WHERE NOT waits)
"""

COUNTED = "SELECT day, count(*), min(shown_us), max(shown_us) FROM judged WHERE NOT waits AND reason IS NULL GROUP BY day"
HAS_REFUSED = "SELECT count(*) > 0 FROM judged WHERE NOT waits AND reason IS NOT NULL"
CLICKED_POSITIONS = """
CREATE OR REPLACE TEMP TABLE clicked_positions AS
WITH clicked AS MATERIALIZED (
    SELECT DISTINCT key, impression_id, position, day, query_norm, shown_norm AS item_norm
    FROM judged WHERE NOT waits AND reason IS NULL
),
hits AS MATERIALIZED (
    SELECT s.impression_id, s.position FROM clicks s JOIN clicked n ON s.key = n.key
    WHERE s.reason IS NULL AND s.ts_us BETWEEN $low AND $high
)
SELECT n.* FROM clicked n ANTI JOIN hits h ON h.impression_id = n.impression_id AND h.position = n.position
"""
KEEP = """
INSERT INTO clicks
SELECT ts_us, key, impression_id, event_id, position, item_norm, raw, log_offset, line, reason, delay_us
FROM judged WHERE NOT waits
"""

REFUSED = """
CREATE OR REPLACE TEMP TABLE refused_clicks AS
SELECT *, CASE reason
    WHEN 'late_click' THEN 'ts: ' || delay_us // 1000000 || ' s after the impression'
    WHEN 'position_out_of_range' THEN 'position: ' || position || ' in a list of ' || shown
    ELSE 'item: not the one shown at position ' || position
    END AS detail
FROM judged WHERE NOT waits AND reason IS NOT NULL
"""
ORPHANS = """
CREATE OR REPLACE TEMP TABLE refused_clicks AS
SELECT *, 'orphan_click' AS reason, 'impression_id: no such impression in the time before the click' AS detail
FROM pending WHERE ts_us < $before
"""
STOP_ORPHANS = "DELETE FROM pending WHERE ts_us < $before"
PENDING = "SELECT count(*), min(ts_us) FROM pending"

NEVER_US = 2**62
"""After every event time."""


@dataclass(slots=True)
class Change:
    """What a batch added to the totals (negative where something was taken back), and the days whose data changed."""

    counted: int = 0
    duplicates: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    days: set[date] = field(default_factory=set)


def attribute(con: duckdb.DuckDBPyConnection, batch: Batch, rules: CountingRules) -> Change:
    """Count a batch's impressions and clicks, and the clicks that waited for them."""
    change = Change()
    if len(batch.impressions) or len(batch.clicks):
        con.register("fresh_impressions", batch.impressions)
        con.register("fresh_clicks", batch.clicks)
        _count_impressions(con, batch, change)
        _count_clicks(con, batch, rules, change)
        con.unregister("fresh_impressions")
        con.unregister("fresh_clicks")
    return change


def expire_pending(con: duckdb.DuckDBPyConnection, before_us: int, arrived_us: int | None) -> Counter[str]:
    """Move the pending clicks with ts < before_us to quarantine as orphans."""
    waiting, first_us = con.execute(PENDING).fetchall()[0]
    if not waiting or first_us >= before_us:
        return Counter()
    con.execute(ORPHANS, {"before": before_us})
    con.execute(STOP_ORPHANS, {"before": before_us})
    return quarantine.add_clicks(con, arrived_us)


def count_pending(con: duckdb.DuckDBPyConnection) -> int:
    """Return how many clicks wait for their impression."""
    return int(con.execute(PENDING).fetchall()[0][0])


def _count_impressions(con: duckdb.DuckDBPyConnection, batch: Batch, change: Change) -> None:
    known = impressions.find_known(con)
    standing, replaced = impressions.choose_earliest(batch.impressions, known)
    con.register("known_impressions", known)
    con.execute(VERSIONS)
    con.unregister("known_impressions")
    back = impressions.retract(con, replaced)
    change.days |= back.days | impressions.keep_impressions(con, standing)
    change.counted += len(standing) - len(replaced) - back.clicks
    change.duplicates += len(batch.impressions) - len(standing) + len(replaced)
    change.quarantined.subtract(back.quarantined)


def _count_clicks(con: duckdb.DuckDBPyConnection, batch: Batch, rules: CountingRules, change: Change) -> None:
    con.execute(CANDIDATES)
    first_us = con.execute(FIRST_CANDIDATE).fetchall()[0][0]
    if first_us is None:
        return
    _judge(con, rules.attribution_window_us, first_us, pc.max(batch.impressions["arrival_us"]).as_py() or 0)
    counted = con.execute(COUNTED).fetchall()
    if counted:
        low, high = min(row[2] for row in counted), max(row[3] for row in counted)
        con.execute(CLICKED_POSITIONS, {"low": low, "high": high + rules.attribution_window_us})
        windows.add_clicks(con)
    con.execute(KEEP)
    change.counted += sum(row[1] for row in counted)
    change.days |= {row[0] for row in counted}
    if con.execute(HAS_REFUSED).fetchall()[0][0]:
        con.execute(REFUSED)
        change.quarantined.update(quarantine.add_clicks(con, batch.latest_us))


def _judge(con: duckdb.DuckDBPyConnection, window: int, first_us: int, last_arrival_us: int) -> None:
    """Find the candidates' impressions, judge them, and let the others wait; `first_us` is the earliest candidate's time."""
    con.execute(FOUND)
    if last_arrival_us <= first_us + window:
        con.execute(ALL_TIMELY)
    else:
        con.execute(GIVEN_UP, {"window": window})
    con.execute(JUDGED, {"window": window})
    con.execute(STOP_WAITING)
    con.execute(WAIT)
