"""Verification of a shard: its counts beside the recount of its log, and where they differ.

The recount of one shard goes into a DuckDB file of its own that spills to disk, so memory stays bounded however long the log is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from queryloop.verify import arrivals, recount_queries
from queryloop.verify.arrivals import Arrivals, LogRecord
from streams.api.snapshot import Counts
from streams.events.erasures import NO_TOMBSTONES, Tombstones
from streams.events.rules import DAY_US, WINDOW_DAYS, CountingRules
from streams.events.schema import EventSettings

OPTIONS: dict[str, Any] = {"threads": 1, "memory_limit": "1GB", "preserve_insertion_order": False}
EPOCH = date(1970, 1, 1)

COUNT = pa.int64()
WINDOWS_SCHEMA = pa.schema(
    [
        ("day", pa.date32()),
        ("query_norm", pa.string()),
        ("item_norm", pa.string()),
        ("position", pa.int32()),
        ("impressions", COUNT),
        ("clicks", COUNT),
    ]
)
PAIRS_SCHEMA = pa.schema([("day", pa.date32()), ("query", pa.string()), ("next_query", pa.string()), ("count", COUNT)])
FUTURE_SCHEMA = pa.schema([("event_id", pa.string())])

LIVE = ("CREATE TABLE live_windows AS FROM windows_held", "CREATE TABLE live_pairs AS FROM pairs_held")
DIFFERENCES = """
CREATE TABLE differences (
    kind VARCHAR, day DATE, query VARCHAR, other VARCHAR, position INTEGER, live BIGINT[], recounted BIGINT[]
)
"""
WINDOWS_DIFFER = f"""
INSERT INTO differences
WITH told AS ({recount_queries.WINDOWS}),
live AS (SELECT query_norm AS query, item_norm AS item, position, impressions, clicks FROM live_windows WHERE day = $day)
SELECT 'window', $day, query, item, position,
    [coalesce(l.impressions, 0), coalesce(l.clicks, 0)], [coalesce(t.impressions, 0), coalesce(t.clicks, 0)]
FROM told t FULL JOIN live l USING (query, item, position)
WHERE t.impressions IS DISTINCT FROM l.impressions OR t.clicks IS DISTINCT FROM l.clicks
"""
PAIRS_DIFFER = """
INSERT INTO differences
WITH told AS (SELECT query, next_query, count FROM pairs WHERE day = $day),
live AS (SELECT query, next_query, count FROM live_pairs WHERE day = $day)
SELECT 'cooccurrence', $day, query, next_query, NULL, [coalesce(l.count, 0)], [coalesce(t.count, 0)]
FROM told t FULL JOIN live l USING (query, next_query)
WHERE t.count IS DISTINCT FROM l.count
"""
LIVE_DAYS = "SELECT DISTINCT day FROM live_windows UNION SELECT DISTINCT day FROM live_pairs"
READ = "SELECT * FROM differences ORDER BY ALL"


NO_DIFFERENCES = pa.schema(
    [
        ("kind", pa.string()),
        ("day", pa.date32()),
        ("query", pa.string()),
        ("other", pa.string()),
        ("position", pa.int32()),
        ("live", pa.list_(pa.int64())),
        ("recounted", pa.list_(pa.int64())),
    ]
).empty_table()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of the recount of one shard.

    `partition` is None where all shards were compared together. `differences` has kind ("window", "cooccurrence"), day, query,
    other (the item, or the next query), position, live and recounted ([impressions, clicks], or [count]). `account` has the
    totals that differ, as (live, recounted). `left_out` has the days that were not compared, each with the reason, and `doubts`
    the reasons why the shard as a whole was not.
    """

    partition: int | None
    next_offset: int
    lines: int
    differences: pa.Table = field(default_factory=lambda: NO_DIFFERENCES)
    account: dict[str, tuple[int, int]] = field(default_factory=dict)
    days: list[date] = field(default_factory=list)
    left_out: dict[date, str] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing that was compared differs."""
        return not self.account and not len(self.differences)

    @property
    def complete(self) -> bool:
        """Whether everything in the shard was compared."""
        return not self.doubts and not any(why != EXPIRED for why in self.left_out.values())


EXPIRED = "expired in the shard"
UNCOVERED = "the log's beginning was removed"


@dataclass(frozen=True, slots=True)
class Log:
    """A partition's lines for the recount.

    `removed_until_us` is None when they begin with the first one ever, else a time that no missing event is later than. `ended`:
    no click is pending any more. `missing` has offsets of lost records between others, once the records are read.
    """

    records: Iterable[LogRecord]
    removed_until_us: int | None = None
    ended: bool = False
    missing: Sequence[int] = ()


def empty_counts(rules: CountingRules) -> Counts:
    """Return the counts of a shard that does not exist yet."""
    return Counts(WINDOWS_SCHEMA.empty_table(), PAIRS_SCHEMA.empty_table(), FUTURE_SCHEMA.empty_table(), rules)


def unverifiable(partition: int, counts: Counts, why: str) -> Verdict:
    """Return the verdict on a shard that cannot be compared with the log."""
    return Verdict(partition, counts.next_offset or 0, 0, doubts=[why])


def verify_shard(
    partition: int,
    counts: Counts,
    log: Log,
    limits: EventSettings,
    folder: Path,
    now_us: int,
    tombstones: Tombstones = NO_TOMBSTONES,
) -> Verdict:
    """Recount a shard's log, without what was erased, and compare.

    The recount's files are in `folder`, which may be removed afterwards.
    """
    path = folder / f"recount-{partition}.duckdb"
    with duckdb.connect(str(path), config={**OPTIONS, "temp_directory": str(folder)}) as con:
        con.execute(arrivals.TABLES)
        future = frozenset(counts.future["event_id"].to_pylist())
        rows = Arrivals(con, counts.rules, limits, now_us, future, _expired_us(counts), tombstones)
        rows.load(log.records)
        account = recount_queries.recount(con, counts.rules, rows.latest_us or 0, log.ended)
        return _compare(con, partition, counts, log, rows.lines, account)


def _compare(
    con: duckdb.DuckDBPyConnection, partition: int, counts: Counts, log: Log, lines: int, account: Counter[str]
) -> Verdict:
    con.register("windows_held", counts.windows)
    con.register("pairs_held", counts.cooccurrence)
    for sql in (*LIVE, DIFFERENCES):
        con.execute(sql)
    held = {day for (day,) in con.execute(LIVE_DAYS).fetchall()}
    left_out = dict(_left_out(counts, log, held | set(recount_queries.recounted_days(con)), held))
    days = sorted((held | set(recount_queries.recounted_days(con))).difference(left_out))
    doubts = [*_doubts(counts), *_holes(log.missing)]
    for day in [] if doubts else days:
        con.execute(WINDOWS_DIFFER, {"day": day})
        con.execute(PAIRS_DIFFER, {"day": day})
    whole = not doubts and log.removed_until_us is None
    differing = account_differences(counts, account, lines, recount_queries.doubtful(con, counts.rules)) if whole else {}
    found = con.sql(READ).to_arrow_table()
    return Verdict(partition, counts.next_offset or 0, lines, found, differing, days, left_out, doubts)


def _left_out(counts: Counts, log: Log, days: Iterable[date], held: set[date]) -> Iterator[tuple[date, str]]:
    """Yield each day that cannot be compared, with the reason."""
    expired = (_day(_expired_us(counts)) - timedelta(days=WINDOW_DAYS)) if counts.rules.retention_us else date.min
    covered = date.min if log.removed_until_us is None else _day(log.removed_until_us) + timedelta(days=1)
    for day in days:
        if day < expired and day not in held:
            yield day, EXPIRED
        elif day < covered:
            yield day, UNCOVERED


def _doubts(counts: Counts) -> list[str]:
    if counts.earlier_events:
        return [
            f"the topic was created anew: {counts.earlier_events} of the shard's {counts.events} lines are from the one before"
        ]
    return []


def _holes(missing: Sequence[int]) -> list[str]:
    if not missing:
        return []
    return [f"the log has no record at offset {min(missing)}, though it has later ones: compaction removes records"]


def account_differences(counts: Counts, account: Counter[str], lines: int, doubtful: Counter[str]) -> dict[str, tuple[int, int]]:
    """Return the totals that differ, as (live, recounted).

    `doubtful` are repeated lines whose first row may have expired in the shard: each is a duplicate or has a row again.
    """
    expected = Counter(account)
    counted, pending = expected.pop("counted", 0), expected.pop("pending", 0)
    live = Counter(counts.quarantined)
    for reason, number in doubtful.items():
        expected[reason] += min(max(live[reason] - expected[reason], 0), number)
    numbers = {"events": (counts.events, lines), "counted": (counts.counted, counted), "pending": (counts.pending, pending)}
    # A duplicate of an erased event was counted as one before the erasure, and the log does not show when that was.
    numbers["duplicates"] = (counts.duplicates + counts.erased, lines - counted - pending - expected.total())
    numbers |= {f"quarantined.{reason}": (live[reason], expected[reason]) for reason in sorted(live | expected)}
    return {name: (mine, recounted) for name, (mine, recounted) in numbers.items() if mine != recounted}


def _expired_us(counts: Counts) -> int:
    """Return the event time before which events may have expired in the shard."""
    rules: CountingRules = counts.rules
    if not rules.retention_us or counts.latest_us is None:
        return 0
    return max((counts.latest_us - rules.retention_us - rules.lookback_us) // DAY_US * DAY_US, 0)


def _day(ts_us: int) -> date:
    return EPOCH + timedelta(days=ts_us // DAY_US)


def rows(differences: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield each differing key as JSON values, with both numbers by name."""
    for batch in differences.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            yield _row(row)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    shown = row["kind"] == "window"
    key = {"item": row["other"], "position": row["position"]} if shown else {"next_query": row["other"]}
    names = ["impressions", "clicks"] if shown else ["count"]
    numbers = {side: dict(zip(names, row[side], strict=True)) for side in ("live", "recounted")}
    return {"kind": row["kind"], "day": row["day"].isoformat(), "query": row["query"], **key, **numbers}
