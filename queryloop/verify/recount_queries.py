"""The counting rules as SQL over a whole log at once, for a recount.

The queries read the tables of `queryloop.verify.arrivals` and share nothing with the store: what the store keeps up to date event
by event is here a join, a minimum or a window over the whole log.
"""

from __future__ import annotations

from collections import Counter
from datetime import date

import duckdb

from queryloop.verify import contested
from streams.events.rules import CountingRules

FOREVER_US = 2**61

# An id with one line needs no decision. 64-bit hashes first: grouping all texts would cost most of the recount.
REPEATED = """
CREATE TABLE repeated AS
WITH ids AS (
    SELECT event_id FROM queries UNION ALL SELECT event_id FROM impressions UNION ALL SELECT event_id FROM clicks
    UNION ALL SELECT event_id FROM refused WHERE event_id IS NOT NULL
),
hashes AS (SELECT hash(event_id) AS h FROM ids GROUP BY h HAVING count(*) > 1)
SELECT event_id FROM ids WHERE hash(event_id) IN (SELECT h FROM hashes) GROUP BY event_id HAVING count(*) > 1
"""
# Of the queries and impressions with one id the first counts, whatever was refused before it.
LATER = """
CREATE TABLE later AS
SELECT seq
FROM (SELECT seq, event_id FROM queries UNION ALL SELECT seq, event_id FROM impressions) SEMI JOIN repeated USING (event_id)
QUALIFY row_number() OVER (PARTITION BY event_id ORDER BY seq) > 1
"""
VERSIONS = "CREATE VIEW versions AS SELECT * FROM impressions ANTI JOIN later USING (seq)"
TAKEN = """
CREATE TABLE taken AS
SELECT DISTINCT event_id
FROM (SELECT event_id FROM queries UNION ALL SELECT event_id FROM impressions) SEMI JOIN repeated USING (event_id)
"""
# What SQL leaves to `contested`: ids of clicks with different contents, and ids that occur again after the retention.
CONTESTED = """
CREATE TABLE contested AS
WITH contents AS (
    SELECT event_id, count(DISTINCT (ts_us, impression_id, position, coalesce('=' || item, ''))) AS number
    FROM clicks SEMI JOIN repeated USING (event_id) GROUP BY event_id
),
bad AS (SELECT event_id FROM refused SEMI JOIN repeated USING (event_id)),
came AS (
    SELECT event_id, after_us, ts_us FROM queries UNION ALL SELECT event_id, after_us, ts_us FROM impressions
    UNION ALL SELECT event_id, after_us, ts_us FROM clicks
    UNION ALL SELECT event_id, before_us, NULL FROM refused WHERE event_id IS NOT NULL
)
SELECT event_id FROM contents
WHERE number > 1 OR event_id IN (SELECT event_id FROM bad) OR event_id IN (SELECT event_id FROM taken)
UNION
SELECT event_id FROM came SEMI JOIN repeated USING (event_id)
GROUP BY event_id HAVING $retention > 0 AND max(after_us) - min(ts_us) > $retention
"""
BEATEN = """
CREATE TABLE beaten AS
WITH hashes AS (SELECT hash(impression_id) AS h FROM versions GROUP BY h HAVING count(*) > 1)
SELECT seq FROM versions WHERE hash(impression_id) IN (SELECT h FROM hashes)
QUALIFY row_number() OVER (PARTITION BY impression_id ORDER BY ts_us, event_id) > 1
"""
STANDING = """
CREATE TABLE standing AS
SELECT *, DATE '1970-01-01' + (ts_us // 86400000000)::INTEGER AS day FROM versions ANTI JOIN beaten USING (seq)
"""
# A click finds its impression when some version of it is at most the lead later and arrived before the click stopped waiting.
TIMELY_BY_OTHER = """
CREATE TABLE timely_by_other AS
SELECT DISTINCT c.seq
FROM clicks c JOIN (FROM versions SEMI JOIN beaten USING (seq)) v USING (impression_id)
WHERE v.ts_us <= c.ts_us + $lead AND (v.seq < c.seq OR v.after_us <= c.ts_us + $patience)
"""
JUDGED = """
CREATE TABLE judged AS
WITH met AS (
    SELECT c.*, s.items, c.ts_us - s.ts_us AS delay_us,
        coalesce(s.ts_us <= c.ts_us + $lead AND (s.seq < c.seq OR s.after_us <= c.ts_us + $patience), false)
            OR c.seq IN (SELECT seq FROM timely_by_other) AS timely
    FROM clicks c ANTI JOIN contested USING (event_id) LEFT JOIN standing s USING (impression_id)
)
SELECT seq, event_id, impression_id, position, timely,
    CASE
        WHEN NOT timely AND ts_us + $patience >= $latest THEN 'pending'
        WHEN NOT timely THEN 'orphan_click'
        WHEN delay_us > $window THEN 'late_click'
        WHEN position >= len(items) THEN 'position_out_of_range'
        WHEN item <> items[position + 1] THEN 'item_mismatch'
        ELSE 'counted'
    END AS verdict
FROM met
"""
# Of equal lines of a click the first that finds its impression decides; one that gave up before is an orphan unless it counts.
CHOSEN = """
CREATE TABLE chosen AS
WITH firsts AS (
    SELECT event_id, any_value(impression_id) AS impression_id, any_value(position) AS position,
        arg_min(verdict, (NOT timely, seq)) AS verdict, bool_or(NOT timely AND seq < timely_seq) AS gave_up
    FROM (
        SELECT *, min(seq) FILTER (timely) OVER (PARTITION BY event_id) AS timely_seq
        FROM judged SEMI JOIN repeated USING (event_id)
    )
    GROUP BY event_id
)
SELECT impression_id, position, verdict FROM judged ANTI JOIN repeated USING (event_id)
UNION ALL SELECT impression_id, position, verdict FROM firsts
UNION ALL SELECT impression_id, position, 'orphan_click' FROM firsts WHERE gave_up AND verdict <> 'counted'
"""
# The windows leave out the lists beyond the first ones of a session, or of a user, for a query on a day.
WEIGHED = """
CREATE TABLE weighed AS
SELECT day, query, impression_id, items FROM standing
QUALIFY row_number() OVER (PARTITION BY day, query, session_id ORDER BY ts_us, event_id) <= $session_cap
    AND (user_id IS NULL
        OR row_number() OVER (PARTITION BY day, query, user_id ORDER BY ts_us, session_id, event_id) <= $user_cap)
"""
CLICKED = """
CREATE TABLE clicked AS
SELECT DISTINCT s.day, s.query, s.impression_id, c.position, s.items[c.position + 1] AS item
FROM chosen c JOIN weighed s USING (impression_id) WHERE c.verdict = 'counted'
"""
PAIRS = """
CREATE TABLE pairs AS
SELECT day, query, next_query, count(*) AS count
FROM (
    SELECT day, query, next_query FROM (
        SELECT DATE '1970-01-01' + (ts_us // 86400000000)::INTEGER AS day, ts_us, event_id, session_id, user_id, query,
            lead(query) OVER follows AS next_query, lead(ts_us) OVER follows AS next_us
        FROM queries ANTI JOIN later USING (seq) WHERE by_user
        WINDOW follows AS (PARTITION BY session_id ORDER BY ts_us, event_id)
    )
    WHERE next_us - ts_us <= $gap AND query <> next_query
    QUALIFY row_number() OVER (PARTITION BY day, query, next_query, session_id ORDER BY ts_us, event_id) <= $session_cap
        AND (user_id IS NULL
            OR row_number() OVER (PARTITION BY day, query, next_query, user_id ORDER BY ts_us, session_id, event_id) <= $user_cap)
)
GROUP BY ALL
"""
WINDOWS = """
SELECT query, item, position::INTEGER AS position, sum(shown)::BIGINT AS impressions, sum(clicked)::BIGINT AS clicks
FROM (
    SELECT query, unnest(items) AS item, unnest(range(len(items))) AS position, 1 AS shown, 0 AS clicked
    FROM weighed WHERE day = $day
    UNION ALL
    SELECT query, item, position, 0, 1 FROM clicked WHERE day = $day
)
GROUP BY ALL
"""
DAYS = "SELECT DISTINCT day FROM standing UNION SELECT DISTINCT day FROM pairs ORDER BY day"

# An id that was accepted in the end has no row for what was refused of it.
REFUSED = """
SELECT reason, count(*) FROM (
    SELECT DISTINCT reason, known_by, event_id IS NULL FROM refused
    WHERE event_id IS NULL OR event_id NOT IN (SELECT event_id FROM contested UNION ALL SELECT event_id FROM taken)
) GROUP BY reason
"""
# A refused line that repeats an earlier one gets a row again where that one's row has expired in the shard.
DOUBTFUL = """
WITH ages AS (SELECT reason, before_us - min(before_us) OVER (PARTITION BY reason, known_by) AS age_us FROM refused)
SELECT reason, count(*) FROM ages WHERE age_us > $retention GROUP BY reason
"""
COUNTED = """
SELECT (SELECT count(*) FROM queries ANTI JOIN later USING (seq)) + (SELECT count(*) FROM standing)
"""
VERDICTS = "SELECT verdict, count(*) FROM chosen GROUP BY verdict"


def recount(con: duckdb.DuckDBPyConnection, rules: CountingRules, latest_us: int, ended: bool = False) -> Counter[str]:
    """Decide every line; return how many rows quarantine has by reason, and `counted` and `pending`.

    `ended`: the log has ended, and no click is pending any more.
    """
    wait = rules.attribution_window_us if rules.retention_us else FOREVER_US
    window, latest = rules.attribution_window_us, 2 * FOREVER_US if ended else latest_us
    for sql in (REPEATED, LATER, VERSIONS, TAKEN):
        con.execute(sql)
    con.execute(CONTESTED, {"retention": rules.retention_us})
    decisions = contested.decide(con, contested.Limits(window, wait, latest, rules.click_lead_us), rules.retention_us)
    for sql in (BEATEN, STANDING):
        con.execute(sql)
    lead = {"patience": wait, "lead": rules.click_lead_us}
    con.execute(TIMELY_BY_OTHER, lead)
    con.execute(JUDGED, {**lead, "latest": latest, "window": window})
    con.execute(CHOSEN)
    contested.add_accepted(con, decisions)
    caps = {"session_cap": rules.session_cap or FOREVER_US, "user_cap": rules.user_cap or FOREVER_US}
    con.execute(WEIGHED, caps)
    con.execute(CLICKED)
    con.execute(PAIRS, {"gap": rules.session_gap_us, **caps})
    return _account(con, decisions)


def _account(con: duckdb.DuckDBPyConnection, decisions: contested.Decisions) -> Counter[str]:
    account = Counter(dict(con.execute(REFUSED).fetchall()))
    account.update(dict(con.execute(VERDICTS).fetchall()))
    account.update(decisions.refused)
    account["counted"] += con.execute(COUNTED).fetchall()[0][0]
    return account


def recounted_days(con: duckdb.DuckDBPyConnection) -> list[date]:
    """Return the days with counts."""
    return [day for (day,) in con.execute(DAYS).fetchall()]


def doubtful(con: duckdb.DuckDBPyConnection, rules: CountingRules) -> Counter[str]:
    """Return by reason how many refused lines repeat one whose row may have expired in the shard by then."""
    if not rules.retention_us:
        return Counter()
    return Counter(dict(con.execute(DOUBTFUL, {"retention": rules.retention_us}).fetchall()))
