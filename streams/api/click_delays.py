"""Click delays: the time from an impression to its counted click, in buckets that sum over shards.

Bucket b holds the delays up to 2^(b/8) seconds that the one before does not, the lowest all up to a millisecond. So the sums over
any number of shards are exact, and a quantile read from them is off by 9 % at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import duckdb

STEPS = 8
"""Buckets a doubling."""
LOWEST = -80
BOUNDS_S = tuple(2.0**power for power in range(-3, 18))
"""Upper bounds, in seconds, that a histogram for Prometheus is told in: an eighth of a second to a day and a half."""

READ = f"""
SELECT CASE WHEN delay_us < 1000 THEN {LOWEST} ELSE greatest(ceil({STEPS} * log2(delay_us / 1e6)), {LOWEST}) END::INTEGER
    AS bucket, count(*), sum(delay_us)::BIGINT
FROM clicks WHERE reason IS NULL GROUP BY bucket ORDER BY bucket
"""

Buckets = list[tuple[int, int, int]]
"""(bucket, clicks, sum of their delays in microseconds)."""


def read_delays(con: duckdb.DuckDBPyConnection) -> Buckets:
    """Return the buckets of one shard's counted clicks."""
    return con.execute(READ).fetchall()


def sum_delays(parts: Iterable[Buckets]) -> Buckets:
    """Return one histogram for several."""
    clicks: Counter[int] = Counter()
    total_us: Counter[int] = Counter()
    for part in parts:
        for bucket, number, delay_us in part:
            clicks[bucket] += number
            total_us[bucket] += delay_us
    return [(bucket, clicks[bucket], total_us[bucket]) for bucket in sorted(clicks)]


def upper_s(bucket: int) -> float:
    """The delay, in seconds, that no click of this bucket exceeds."""
    return float(2.0 ** (bucket / STEPS))


def find_quantile(buckets: Buckets, share: float) -> float | None:
    """The delay in seconds that `share` of the clicks do not exceed (log-linear inside a bucket); None without clicks."""
    wanted = share * sum(number for _, number, _ in buckets)
    below = 0
    for bucket, number, _ in buckets:
        if below + number >= wanted and number:
            within = (wanted - below) / number
            return upper_s(bucket) if bucket == LOWEST else float(2.0 ** ((bucket - 1 + within) / STEPS))
        below += number
    return None


def count_upto(buckets: Buckets) -> Mapping[float, int]:
    """Clicks with a delay of at most each of BOUNDS_S, exactly: a bucket ends at each."""
    return {bound: sum(number for bucket, number, _ in buckets if upper_s(bucket) <= bound) for bound in BOUNDS_S}


def describe_delays(buckets: Buckets) -> dict[str, object]:
    """The histogram as JSON values: seconds, each bucket by its upper bound."""
    clicks = sum(number for _, number, _ in buckets)
    total_us = sum(delay_us for *_, delay_us in buckets)
    return {
        "clicks": clicks,
        "mean_s": total_us / clicks / 1e6 if clicks else None,
        "p50_s": find_quantile(buckets, 0.5),
        "p90_s": find_quantile(buckets, 0.9),
        "p99_s": find_quantile(buckets, 0.99),
        "buckets": [{"upto_s": upper_s(bucket), "clicks": number} for bucket, number, _ in buckets],
    }
