"""Verification from the lake: the exported days, counted anew from the rows of their day files, compared with the live counts.

It needs no Kafka, so it also covers days that the log no longer has. Impressions carry their clicked flags and queries
their sessions; the lake's own co-occurrence files are not read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from queryloop.verify.normal_form import normal_form
from queryloop.verify.shard_verification import DIFFERENCES, READ, Verdict
from streams.api.snapshot import Counts
from streams.counting.caps.left_out import cap_params
from streams.events.rules import CountingRules
from streams.lake.files import Lake
from streams.lake.reader import read_impressions, read_queries

NOT_EXPORTED = "not in the lake, or changed since its export"
NEXT_NOT_EXPORTED = "co-occurrence only: the day after is not in the lake"

LIVE_WINDOWS = """
CREATE TABLE live_windows AS
SELECT day, query_norm AS query, item_norm AS item, position,
    sum(impressions)::BIGINT AS impressions, sum(clicks)::BIGINT AS clicks
FROM windows_held GROUP BY ALL
"""
LIVE_PAIRS = "CREATE TABLE live_pairs AS SELECT day, query, next_query, sum(count)::BIGINT AS count FROM pairs_held GROUP BY ALL"
WINDOWS_DIFFER = """
INSERT INTO differences
WITH told AS (
    SELECT query, item, position, count(*) AS impressions, count(*) FILTER (clicked) AS clicks
    FROM (
        SELECT query, unnest(items) AS item, unnest(clicked) AS clicked, unnest(range(len(items)))::INTEGER AS position FROM (
            FROM shown
            QUALIFY row_number() OVER (PARTITION BY shard, query, session_id ORDER BY ts_us, event_id) <= $session_cap
                AND (coalesce(user_id, '') = ''
                    OR row_number() OVER (PARTITION BY shard, query, user_id ORDER BY ts_us, session_id, event_id) <= $user_cap)
        )
    )
    GROUP BY ALL
),
live AS (FROM live_windows WHERE day = $day)
SELECT 'window', $day, query, item, position,
    [coalesce(l.impressions, 0), coalesce(l.clicks, 0)], [coalesce(t.impressions, 0), coalesce(t.clicks, 0)]
FROM told t FULL JOIN live l USING (query, item, position)
WHERE t.impressions IS DISTINCT FROM l.impressions OR t.clicks IS DISTINCT FROM l.clicks
"""
PAIRS_DIFFER = """
INSERT INTO differences
WITH told AS (
    SELECT query, next_query, count(*) AS count
    FROM (
        FROM (
            SELECT *, lead(query) OVER follows AS next_query, lead(ts_us) OVER follows AS next_us
            FROM asked WINDOW follows AS (PARTITION BY session_id ORDER BY ts_us, event_id)
        )
        WHERE day = $day AND next_us - ts_us <= $gap AND query <> next_query
        QUALIFY row_number() OVER (PARTITION BY shard, query, next_query, session_id ORDER BY ts_us, event_id) <= $session_cap
            AND (coalesce(user_id, '') = ''
                OR row_number() OVER (
                    PARTITION BY shard, query, next_query, user_id ORDER BY ts_us, session_id, event_id
                ) <= $user_cap)
    )
    GROUP BY ALL
),
live AS (FROM live_pairs WHERE day = $day)
SELECT 'cooccurrence', $day, query, next_query, NULL, [coalesce(l.count, 0)], [coalesce(t.count, 0)]
FROM told t FULL JOIN live l USING (query, next_query)
WHERE t.count IS DISTINCT FROM l.count
"""


def verify_lake(shards: Mapping[int, Counts], lake: Lake, progress: Callable[[int, int], None]) -> Verdict:
    """Compare every day of the lake that has not changed since its export, all shards together; calls `progress(done, days)`."""
    held = {day for counts in shards.values() for day in _days(counts)}
    clean = {day for day in held if all(day in counts.exported or day not in _days(counts) for counts in shards.values())}
    left_out = dict.fromkeys(sorted(held - clean), NOT_EXPORTED)
    with duckdb.connect(":memory:", config={"threads": 1}) as con:
        _load_live(con, shards)
        lines, rules = 0, next((counts.rules for counts in shards.values()), CountingRules())
        for number, day in enumerate(sorted(clean), 1):
            lines += _compare_windows(con, lake, day, sorted(shards), rules)
            if (after := day + timedelta(days=1)) in clean or after not in held:
                lines += _compare_pairs(con, lake, day, sorted(shards), rules)
            else:
                left_out[day] = NEXT_NOT_EXPORTED
            progress(number, len(clean))
        found = con.sql(READ).to_arrow_table()
    return Verdict(None, 0, lines, found, days=sorted(clean), left_out=left_out)


def _days(counts: Counts) -> set[date]:
    """Return the days on which a shard has counts."""
    return {*counts.windows["day"].unique().to_pylist(), *counts.cooccurrence["day"].unique().to_pylist()}


def _load_live(con: duckdb.DuckDBPyConnection, shards: Mapping[int, Counts]) -> None:
    con.execute(DIFFERENCES)
    if shards:
        con.register("windows_held", pa.concat_tables([counts.windows for counts in shards.values()]))
        con.register("pairs_held", pa.concat_tables([counts.cooccurrence for counts in shards.values()]))
        con.execute(LIVE_WINDOWS)
        con.execute(LIVE_PAIRS)


def _compare_windows(
    con: duckdb.DuckDBPyConnection, lake: Lake, day: date, partitions: Sequence[int], rules: CountingRules
) -> int:
    shown = pa.concat_tables([_of_shard(read_impressions(lake, day, day, one), one) for one in partitions])
    items = pa.array([list(map(normal_form, row)) for row in shown["items"].to_pylist()], pa.list_(pa.string()))
    whose = shown.select(["shard", "session_id", "user_id", "ts_us", "event_id", "clicked"])
    con.register("shown", whose.append_column("query", _normal_forms(shown["query"])).append_column("items", items))
    con.execute(WINDOWS_DIFFER, {"day": day, **cap_params(rules)})
    con.unregister("shown")
    return len(shown)


def _compare_pairs(con: duckdb.DuckDBPyConnection, lake: Lake, day: date, partitions: Sequence[int], rules: CountingRules) -> int:
    """Compare the pairs that begin on a day; they may end on the day after."""
    longest = timedelta(microseconds=rules.session_gap_us) + timedelta(days=1)
    last = day + timedelta(days=longest.days)
    asked = pa.concat_tables([_of_shard(read_queries(lake, day, last, one), one) for one in partitions])
    by_user = asked.filter(pc.equal(asked["source"], "user"))
    columns = by_user.select(["shard", "day", "ts_us", "event_id", "session_id", "user_id"])
    con.register("asked", columns.append_column("query", _normal_forms(by_user["query"])))
    con.execute(PAIRS_DIFFER, {"day": day, "gap": rules.session_gap_us, **cap_params(rules)})
    con.unregister("asked")
    return len(asked.filter(pc.equal(asked["day"], day)))


def _of_shard(rows: pa.Table, partition: int) -> pa.Table:
    """Return rows with the column `shard`, in which a user's cap holds."""
    return rows.append_column("shard", pa.array([partition] * len(rows), pa.int32()))


def _normal_forms(texts: pa.ChunkedArray) -> pa.Array:
    return pa.array(list(map(normal_form, texts.to_pylist())), pa.string())
