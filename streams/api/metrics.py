"""The worker's numbers for Prometheus: of every shard, and of every worker that holds one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, get_args

from prometheus_client import generate_latest
from prometheus_client.core import HistogramMetricFamily, Metric

from streams.api.click_delays import count_upto
from streams.events.schema import Reason
from streams.runtime.metric_families import Families, counter, describe_processes, gauge
from streams.store.maintenance import Kind
from streams.store.progress import Histogram

# Gauges, for they fall: an earlier impression takes back what counted for a later one, a repaired event leaves quarantine.
COUNTS = {
    "counted_events": ("counted", "Events counted."),
    "duplicate_events": ("duplicates", "Events delivered more than once, or impressions and clicks that repeat another."),
    "pending_clicks": ("pending", "Clicks that wait for their impression."),
    "erased_events": ("erased", "Events of erased sessions and users, removed or dropped on arrival."),
}
LAGS = {
    "lag_records": ("records", "Records in the log that are not applied yet."),
    "lag_events": ("events", "Events not applied yet, estimated by the events a record of late."),
    "open_transaction_records": ("open_transaction_records", "Records that wait for the end of a producer's transaction."),
    "lag_seconds": ("seconds", "Age of the last applied record while the shard is behind the log, else 0."),
    "event_time_lag_seconds": ("event_time_seconds", "Age of the latest event by its own time."),
}
UPKEEP = {
    "upkeep_slices": (counter, "slices", "Slices of upkeep since the shard was taken: checkpoints, expiry, compaction."),
    "upkeep_seconds": (counter, "seconds", "Seconds of upkeep since the shard was taken."),
    "upkeep_longest_seconds": (gauge, "longest_s", "Longest slice of upkeep, for which counting waits."),
}
WORKER = {
    "worker_memory_bytes": (gauge, "memory_bytes", "Resident memory of the worker."),
    "new_topics": (counter, "new_topics", "Times that a log was found lost or made anew since the worker started."),
}

TIMINGS = {
    "apply_events": "Events of one apply.",
    "apply_seconds": "Seconds of one apply.",
    "write_events": "Events of one transaction that wrote what was applied.",
    "write_seconds": "Seconds of one such transaction.",
}


Parts = Mapping[int, Mapping[str, Any]]
"""What `streams.api.endpoints.METRICS` reads of each shard, by partition."""


def render_metrics(shards: Parts, missing: Sequence[int]) -> bytes:
    """Render the parts of all shards in Prometheus' text format; no worker answers for the partitions `missing`."""
    return generate_latest(Families(lambda: _all_families(shards, missing)))


def describe_histogram(histogram: Histogram) -> dict[str, Any]:
    """A histogram as JSON values."""
    return {"bounds": list(histogram.bounds), "counts": histogram.counts, "total": histogram.total}


def _all_families(shards: Parts, missing: Sequence[int]) -> Iterator[Metric]:
    yield from _shard_families([(str(partition), part) for partition, part in sorted(shards.items())])
    yield from _worker_families({part["worker"]["name"]: part["worker"] for part in shards.values()})
    yield gauge("partitions_missing", "Partitions that no worker answers for.", (), [((), len(missing))])


def _shard_families(shards: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Metric]:
    # What is on disk: after a kill the last second is read again, and a counter that falls looks as if it began at 0.
    written = [((shard,), part["state"]["events"]) for shard, part in shards]
    yield counter("events", "Events read from the log, of every outcome, once they are on disk.", ["partition"], written)
    for name, (key, about) in COUNTS.items():
        yield gauge(name, about, ["partition"], [((shard,), part["status"][key]) for shard, part in shards])
    reasons = [((shard, reason), part["status"]["quarantined"].get(reason, 0)) for shard, part in shards for reason in Reason]
    yield gauge("quarantined_events", "Events in quarantine, by reason.", ["partition", "reason"], reasons)
    left_out = [((shard, kind), n) for shard, part in shards for kind, n in part["status"]["left_out"].items()]
    about = "Lists, and pairs of queries, that count nothing because their session or user is over its cap."
    yield gauge("left_out", about, ["partition", "kind"], left_out)
    latest = [((shard,), part["status"]["latest_ts"]) for shard, part in shards]
    yield gauge("latest_event_timestamp_seconds", "Latest event time seen.", ["partition"], latest)
    for name, (key, about) in LAGS.items():
        yield gauge(name, about, ["partition"], [((shard,), part["lag"][key]) for shard, part in shards])
    yield from _upkeep_families(shards)
    yield from _state_families(shards)
    yield _delay_family(shards)


def _upkeep_families(shards: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Metric]:
    for name, (make, key, about) in UPKEEP.items():
        done = [((shard, kind), part["upkeep"].get(kind, {key: 0})[key]) for shard, part in shards for kind in get_args(Kind)]
        yield make(name, about, ["partition", "kind"], done)


def _state_families(shards: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[Metric]:
    sizes = [((shard, kind), part["state"][f"{kind}_bytes"]) for shard, part in shards for kind in ("file", "wal")]
    yield gauge("shard_bytes", "Size of a shard's database and of its write-ahead log.", ["partition", "file"], sizes)
    tables = [((shard, table), rows) for shard, part in shards for table, rows in part["state"]["rows"].items()]
    yield gauge("shard_rows", "Rows of a shard's tables.", ["partition", "table"], tables)
    held = [((shard,), part["state"]["days"]["number"]) for shard, part in shards]
    yield gauge("shard_dates", "Days that a shard holds.", ["partition"], held)
    waiting = [((shard,), _count_unexported(part)) for shard, part in shards]
    yield gauge(
        "unexported_dates",
        "Days that a shard holds and that are not in the lake; the newest are not due yet.",
        ["partition"],
        waiting,
    )


def _count_unexported(part: Mapping[str, Any]) -> int:
    days: Mapping[str, Any] = part["state"]["days"]
    if not days["number"]:
        return 0
    return int(days["number"]) - sum(bool(days["first"] <= day <= days["last"]) for day in part["status"]["days_exported"])


def _delay_family(shards: Sequence[tuple[str, Mapping[str, Any]]]) -> Metric:
    # Not to be read with rate(): clicks that expire with their shard's days leave it.
    about = "Time from an impression to its click, of the clicks held."
    family = HistogramMetricFamily("queryloop_click_delay_seconds", about, labels=["partition"])
    for shard, part in shards:
        buckets = part["delays"]
        upto = [(str(bound), clicks) for bound, clicks in count_upto(buckets).items()]
        all_clicks = sum(clicks for _, clicks, _ in buckets)
        family.add_metric([shard], [*upto, ("+Inf", all_clicks)], sum(delay_us for *_, delay_us in buckets) / 1e6)
    return family


def _worker_families(workers: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    figures_by_worker = sorted(workers.items())
    yield from describe_processes({(worker,): figures["process"] for worker, figures in figures_by_worker}, ["worker"])
    for name, (make, key, about) in WORKER.items():
        yield make(name, about, ["worker"], [((worker,), figures[key]) for worker, figures in figures_by_worker])
    for name, about in TIMINGS.items():
        family = HistogramMetricFamily(f"queryloop_{name}", about, labels=["worker"])
        for worker, figures in figures_by_worker:
            bounds = [*map(str, figures[name]["bounds"]), "+Inf"]
            family.add_metric(
                [worker], list(zip(bounds, accumulate(figures[name]["counts"]), strict=True)), figures[name]["total"]
            )
        yield family
