"""Click delays, from an impression to its counted click, as histograms that sum over shards.

Bucket b has the upper bound 2^(b/8) seconds; the lowest bucket has all delays up to a millisecond. All shards have the same
buckets, so their sums are exact, and a quantile read from them is off by at most 9 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import duckdb

BUCKETS_PER_DOUBLING = 8
"""Buckets per doubling of the delay."""
LOWEST_BUCKET = -80
BOUNDS_S = tuple(2.0**power for power in range(-3, 18))
"""Upper bounds, in seconds, of the Prometheus histogram's buckets: an eighth of a second to a day and a half."""

DELAY_HISTOGRAM = f"""
SELECT CASE WHEN delay_us < 1000 THEN {LOWEST_BUCKET}
    ELSE greatest(ceil({BUCKETS_PER_DOUBLING} * log2(delay_us / 1e6)), {LOWEST_BUCKET}) END::INTEGER AS bucket,
    count(*), sum(delay_us)::BIGINT
FROM clicks WHERE reason IS NULL GROUP BY bucket ORDER BY bucket
"""

Buckets = list[tuple[int, int, int]]
"""(bucket, clicks, sum of their delays in microseconds)."""


def read_delays(con: duckdb.DuckDBPyConnection) -> Buckets:
    """Return the buckets of one shard's counted clicks."""
    return con.execute(DELAY_HISTOGRAM).fetchall()


def sum_delays(parts: Iterable[Buckets]) -> Buckets:
    """Return the sum of several histograms."""
    clicks: Counter[int] = Counter()
    total_us: Counter[int] = Counter()
    for part in parts:
        for bucket, number, delay_us in part:
            clicks[bucket] += number
            total_us[bucket] += delay_us
    return [(bucket, clicks[bucket], total_us[bucket]) for bucket in sorted(clicks)]


def upper_s(bucket: int) -> float:
    """Return a bucket's upper bound in seconds."""
    return float(2.0 ** (bucket / BUCKETS_PER_DOUBLING))


def find_quantile(buckets: Buckets, share: float) -> float | None:
    """Return the quantile `share` (0 to 1) in seconds, interpolated log-linearly within its bucket; None without clicks."""
    wanted = share * sum(number for _, number, _ in buckets)
    below = 0
    for bucket, number, _ in buckets:
        if below + number >= wanted and number:
            within = (wanted - below) / number
            return upper_s(bucket) if bucket == LOWEST_BUCKET else float(2.0 ** ((bucket - 1 + within) / BUCKETS_PER_DOUBLING))
        below += number
    return None


def count_upto(buckets: Buckets) -> Mapping[float, int]:
    """Return the number of clicks up to each of BOUNDS_S, which is exact since each is the upper bound of a bucket."""
    return {bound: sum(number for bucket, number, _ in buckets if upper_s(bucket) <= bound) for bound in BOUNDS_S}


def describe_delays(buckets: Buckets) -> dict[str, object]:
    """Return the histogram as JSON values in seconds: clicks, mean, quantiles, and each bucket by its upper bound."""
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
